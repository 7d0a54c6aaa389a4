//! The LLM worker: its engine, and what the main loop of workers (`service/worker_loop.rs`) does with requests.
//!
//! The owner of a slot has one item in work. Tokens that its ring has no room for wait in the main thread, at most as many
//! as the answer may have.

use crate::pg::service::process::pipe;
use crate::pg::service::shared::{DeviceState, Shared};
use crate::pg::service::worker_loop::{self, End, Limits, Own, Service};
use crate::pg::settings;
use crate::serve::ipc::queues::{Answer, Outbox, Sender};
use crate::serve::ipc::threads::spawn;
use crate::serve::ipc::wire::{BadMessage, WHOLE_CALL};
use crate::serve::llm::engine::Engine;
use crate::serve::llm::inbox::{Inbox, Job, Settings};
use crate::serve::llm::wire::{MAX_REQUEST, Reply, Request, decode_request, encode_reply};
use pgrx::{pg_guard, pg_sys};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

const NAME: &str = "situ llm";

/// Entry of the worker's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn situ_llm_main(_argument: pg_sys::Datum) {
    worker_loop::main(NAME, Shared::llm(), 0, serve);
}

fn follow_settings(to: &Settings) {
    to.threads.store(settings::llm_threads(), Ordering::Relaxed);
    to.memory.store(settings::llm_memory(), Ordering::Relaxed);
    to.idle.store(settings::model_idle(), Ordering::Relaxed);
}

fn serve(own: Own) -> Result<(), End> {
    let (read_end, write_end) = pipe()?;
    let settings = Settings::default();
    follow_settings(&settings);
    let inbox = Arc::new(Inbox::new(Outbox::new(write_end, &own.device.account), settings));
    let engine = Engine::new(inbox.clone());
    let engine = spawn("situ llm engine", move || engine.run());
    let engine = engine.map_err(|error| format!("cannot start a thread: {error}"))?;
    worker_loop::run(own, &read_end, LlmService { inbox, engine })
}

struct LlmService {
    inbox: Arc<Inbox>,
    engine: JoinHandle<std::io::Result<()>>,
}

impl worker_loop::Request for Request {
    const MOST: usize = MAX_REQUEST;

    fn decode(message: &[u8]) -> Result<Request, BadMessage> {
        decode_request(message)
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn bytes(&self) -> usize {
        0
    }
}

impl Service for LlmService {
    type Request = Request;
    const NAME: &'static str = NAME;
    const READER: &'static str = "the LLM worker";
    const LIMITS: Limits = Limits {
        items: usize::MAX,
        bytes: usize::MAX,
        replies: usize::MAX,
    };

    fn outbox(&self) -> &Outbox {
        &self.inbox.outbox
    }

    fn refuse(error: &BadMessage, text: String) -> Option<Vec<u8>> {
        encode_reply(WHOLE_CALL, &Reply::Failed(error.failure(text))).ok()
    }

    fn push(&self, requests: Vec<(Arc<Sender>, Request)>) {
        let jobs = requests.into_iter().map(|(sender, request)| Job {
            sender,
            number: request.number,
            model: request.model,
            item: request.item,
            since: Instant::now(),
        });
        self.inbox.push(jobs.collect());
    }

    fn sender_left(&self) {
        self.inbox.sender_left();
    }

    /// Requests and errors are counted where replies are made, and an item has many: it counts until its sender leaves.
    fn answered(&self, _device: &DeviceState, _answer: &Answer) -> usize {
        0
    }

    fn reload(&self, _device: &DeviceState) {
        follow_settings(&self.inbox.settings);
    }

    fn check(&self) -> Result<(), End> {
        match self.engine.is_finished() {
            true => Err(End::Failed("the engine of the LLM worker ended".to_owned())),
            false => Ok(()),
        }
    }

    fn describe(&self) -> String {
        self.inbox.described.lock().clone()
    }

    fn end(&self) {
        self.inbox.end();
    }

    fn is_over(&self) -> bool {
        self.engine.is_finished()
    }
}
