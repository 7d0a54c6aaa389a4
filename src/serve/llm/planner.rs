//! The thread that makes prompts of what was asked: chat templates and tokens of megabytes of text take seconds, in which
//! answers of others go on. Whose prompt is next: databases share by bytes, and so do the roles in each.

use super::inbox::{Desk, Job};
use super::loaded;
use super::runtime::{Llm, Request};
use super::wire::{Item, LlmKey};
use crate::model::stop;
use crate::serve::encoder::plan::guarded;
use crate::serve::fair_queue::{Flow, Rotation};
use crate::serve::ipc::exchange::Sender;
use crate::serve::ipc::failure::Failure;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Whose work it is: answers are shared out among databases, and among the roles of one.
pub fn flow(sender: &Sender) -> Flow {
    Flow {
        database: sender.database,
        sender: sender.user as usize,
    }
}

struct Task {
    llm: Arc<Llm>,
    job: Job,
}

/// What became of a job.
pub struct Prepared {
    pub key: LlmKey,
    pub sender: Arc<Sender>,
    pub number: u64,
    pub result: Result<Made, Failure>,
}

/// What a job needs.
pub enum Made {
    /// An answer.
    Answer(Request),
    /// Nothing more: input vectors, row by row.
    Embeds { columns: u32, values: Vec<f32> },
}

/// Jobs on their way to becoming prompts.
#[derive(Default)]
pub struct Planner {
    queue: Mutex<Rotation<Task>>,
    come: Condvar,
}

impl Planner {
    /// Has a prompt made; the desk's inbox gets it.
    pub fn push(&self, llm: Arc<Llm>, job: Job) {
        let flow = flow(&job.sender);
        self.queue.lock().push(flow, Task { llm, job });
        self.come.notify_one();
    }

    /// The life of the thread: until the desk says stop.
    pub fn run(&self, desk: &Arc<Desk>) {
        while !desk.stop.load(Ordering::SeqCst) {
            match self.next() {
                Some(task) => desk.prepared(prepare(desk, task)),
                None => {
                    let mut queue = self.queue.lock();
                    if queue.is_empty() && !desk.stop.load(Ordering::SeqCst) {
                        self.come.wait_for(&mut queue, Duration::from_secs(1));
                    }
                }
            }
        }
    }

    /// Has the thread look at what the desk says.
    pub fn wake(&self) {
        let _queue = self.queue.lock();
        self.come.notify_one();
    }

    fn next(&self) -> Option<Task> {
        let mut found = None;
        self.queue.lock().fill(1, |queue| {
            let task = queue.pop_front()?;
            let cost = 1 + task.job.item.bytes();
            found = Some(task);
            Some(cost)
        });
        found
    }
}

fn prepare(desk: &Arc<Desk>, task: Task) -> Prepared {
    let Task { llm, job } = task;
    let Job {
        sender,
        number,
        model,
        item,
        ..
    } = job;
    let (own, asker) = (desk.clone(), sender.clone());
    let ends = move || own.stop.load(Ordering::Relaxed) || asker.has_left();
    let result = stop::until(ends, || guarded(|| make(&llm, item)));
    Prepared {
        key: model,
        sender,
        number,
        result,
    }
}

fn make(llm: &Llm, item: Item) -> Result<Made, Failure> {
    match item {
        Item::Generate { prompt, sampling } => {
            let prompt = loaded::assemble(llm, prompt)?;
            Ok(Made::Answer(loaded::request(prompt, sampling)))
        }
        Item::Embeds { prompt } => {
            let prompt = loaded::assemble(llm, prompt)?;
            let columns = llm.config().hidden as u32;
            loaded::check_size(prompt.len(), columns)?;
            let values = llm.embeds(&prompt).map_err(loaded::fail)?;
            Ok(Made::Embeds { columns, values })
        }
        Item::Warm | Item::Unload => Err(Failure::new(
            crate::serve::ipc::failure::Kind::Internal,
            "an item that has no prompt",
        )),
    }
}
