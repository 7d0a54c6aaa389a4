//! The thread that makes prompts of what was asked: chat templates and tokens of megabytes of text take seconds, in which
//! answers of others go on. Whose prompt is next: databases share by bytes, and so do the roles in each.

use super::inbox::{Inbox, Job, Made, Prepared};
use super::prompt;
use super::runtime::Llm;
use super::wire::Item;
use crate::model::stop;
use crate::serve::encoder::plan::guarded;
use crate::serve::fair_queue::{FairQueue, Flow};
use crate::serve::ipc::failure::Failure;
use crate::serve::ipc::queues::Sender;
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

/// Jobs on their way to becoming prompts.
#[derive(Default)]
pub struct Planner {
    queue: Mutex<FairQueue<Task>>,
    come: Condvar,
}

impl Planner {
    /// Has a prompt made; the inbox gets it.
    pub fn push(&self, llm: Arc<Llm>, job: Job) {
        let flow = flow(&job.sender);
        self.queue.lock().push(flow, Task { llm, job });
        self.come.notify_one();
    }

    /// The life of the thread: until the inbox says stop.
    pub fn run(&self, inbox: &Arc<Inbox>) {
        while !inbox.stop.load(Ordering::SeqCst) {
            match self.next() {
                Some(task) => inbox.prepared(prepare(inbox, task)),
                None => {
                    let mut queue = self.queue.lock();
                    if queue.is_empty() && !inbox.stop.load(Ordering::SeqCst) {
                        self.come.wait_for(&mut queue, Duration::from_secs(1));
                    }
                }
            }
        }
    }

    /// Has the thread look at what the inbox says.
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

fn prepare(inbox: &Arc<Inbox>, task: Task) -> Prepared {
    let Task { llm, job } = task;
    let Job {
        sender,
        number,
        model,
        item,
        ..
    } = job;
    let (own, asker) = (inbox.clone(), sender.clone());
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
            let prompt = prompt::assemble(llm, prompt)?;
            Ok(Made::Answer(prompt::request(prompt, sampling)))
        }
        Item::Embeds { prompt } => {
            let prompt = prompt::assemble(llm, prompt)?;
            let columns = llm.config().hidden as u32;
            prompt::check_size(prompt.len(), columns)?;
            let values = llm.embeds(&prompt).map_err(prompt::fail)?;
            Ok(Made::Embeds { columns, values })
        }
        Item::Warm | Item::Unload => Err(Failure::new(
            crate::serve::ipc::failure::Kind::Internal,
            "an item that has no prompt",
        )),
    }
}
