//! The encoder worker: its threads, and what its main loop (`worker_loop.rs`) does with requests.

use super::process::pipe;
use super::shared::{DeviceState, MODELS, Shared};
use super::worker_loop::{self, End, Limits, Own, Service};
use crate::compute::Pool;
use crate::model::Device;
use crate::pg::settings;
use crate::serve::encoder::device;
use crate::serve::encoder::engine::{Engine, plan_ahead, threads};
use crate::serve::encoder::scheduler::Scheduler;
use crate::serve::ipc::queues::{Answer, Outbox, Sender, Settings, Work};
use crate::serve::ipc::statistics::add;
use crate::serve::ipc::threads::spawn;
use crate::serve::ipc::wire::{BadMessage, MAX_REQUEST, Reply, Request, WHOLE_CALL, decode_request, encode_reply};
use pgrx::{pg_guard, pg_sys};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

const NAME: &str = "situ encoder";

/// Entry of the worker's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn situ_encoder_main(argument: pg_sys::Datum) {
    worker_loop::main(NAME, Shared::get(), argument.value(), serve);
}

fn follow_settings(to: &Settings) {
    to.threads.store(settings::cpu_threads(), Ordering::Relaxed);
    to.batch_tokens.store(settings::batch_tokens(), Ordering::Relaxed);
    to.model_idle.store(settings::model_idle(), Ordering::Relaxed);
    to.model_memory.store(settings::model_memory(), Ordering::Relaxed);
}

fn serve(own: Own) -> Result<(), End> {
    let device = own.device.name.get().parse::<Device>();
    let device = device.map_err(|error| error.to_string())?;
    if settings::test_lost_device(own.number) {
        return Err(End::Lost("a test wants it so".to_owned()));
    }
    // Held until the process ends: the models on a GPU share what was opened here.
    let _open = device::open(device, settings::kernel_cache()).map_err(End::Lost)?;
    let (read_end, write_end) = pipe()?;
    let settings = Settings::default();
    follow_settings(&settings);
    let pool = Pool::new(threads(settings::cpu_threads())).map_err(|error| error.to_string())?;
    let outbox = Outbox::new(write_end, &own.device.account);
    let scheduler = Arc::new(Scheduler::new(device, outbox, settings, pool));
    let failed = |error: std::io::Error| format!("cannot start a thread: {error}");
    let (compute, planner) = (Engine::new(scheduler.clone()), scheduler.clone());
    let threads = [
        spawn("situ compute", move || compute.run()).map_err(failed)?,
        spawn("situ planner", move || plan_ahead(&planner)).map_err(failed)?,
    ];
    let service = EncoderService {
        scheduler,
        threads,
        number: own.number,
    };
    worker_loop::run(own, &read_end, service)
}

struct EncoderService {
    scheduler: Arc<Scheduler>,
    /// Those that compute and plan.
    threads: [JoinHandle<()>; 2],
    /// The device's.
    number: usize,
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
        self.item.bytes()
    }
}

impl Service for EncoderService {
    type Request = Request;
    const NAME: &'static str = NAME;
    const READER: &'static str = "the encoder";
    const LIMITS: Limits = Limits {
        items: 512,
        bytes: 4 << 20,
        replies: 1 << 20,
    };

    fn outbox(&self) -> &Outbox {
        &self.scheduler.outbox
    }

    fn refuse(error: &BadMessage, text: String) -> Option<Vec<u8>> {
        encode_reply(WHOLE_CALL, &Reply::Failed(error.failure(text))).ok()
    }

    fn push(&self, requests: Vec<(Arc<Sender>, Request)>) {
        if settings::test_lost_device(self.number + settings::LOST_WITH_WORK) {
            self.scheduler.lose_device("a test wants it so once there is work");
        }
        let work = requests.into_iter().map(|(sender, request)| Work {
            sender,
            number: request.number,
            lane: request.lane,
            model: request.model,
            item: request.item,
        });
        self.scheduler.push(work.collect());
    }

    fn sender_left(&self) {
        self.scheduler.sender_left();
    }

    fn answered(&self, device: &DeviceState, answer: &Answer) -> usize {
        let counters = &device.account.counters;
        add(&counters.requests, 1);
        match answer.error {
            Some(_) => add(&counters.errors, 1),
            None => device.end_probation(),
        }
        1
    }

    fn reload(&self, device: &DeviceState) {
        follow_settings(&self.scheduler.settings);
        // Whoever reloads the configuration says that the device is to be used.
        device.end_probation();
        if settings::test_lost_device(self.number) {
            self.scheduler.lose_device("a test wants it so");
        }
    }

    fn check(&self) -> Result<(), End> {
        if let Some(why) = self.scheduler.lost() {
            return Err(End::Lost(why.to_owned()));
        }
        match self.threads.iter().any(JoinHandle::is_finished) {
            true => Err(End::Failed("a thread of the encoder ended".to_owned())),
            false => Ok(()),
        }
    }

    fn describe(&self) -> String {
        self.scheduler.describe_models(MODELS)
    }

    fn end(&self) {
        self.scheduler.end();
    }

    /// Those that load and calibrate too.
    fn is_over(&self) -> bool {
        self.scheduler.background.is_over() && self.threads.iter().all(JoinHandle::is_finished)
    }
}
