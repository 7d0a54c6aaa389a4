//! What goes between the LLM worker's main thread, its engine and its loaders.

use super::runtime::{Llm, Request};
use super::wire::{Item, LlmKey, Reply, encode_reply};
use crate::serve::encoder::scheduler::unsendable;
use crate::serve::ipc::failure::Failure;
use crate::serve::ipc::queues::{Answer, Outbox, Sender};
use crate::serve::ipc::statistics::add;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// An item and where it came from.
pub struct Job {
    pub sender: Arc<Sender>,
    pub number: u64,
    pub model: LlmKey,
    pub item: Item,
    pub since: Instant,
}

/// A load that ended.
pub struct Load {
    pub key: LlmKey,
    pub result: Result<Arc<Llm>, Failure>,
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

/// Settings that the engine follows while it runs.
#[derive(Default)]
pub struct Settings {
    /// 0: the machine's.
    pub threads: AtomicUsize,
    /// Bytes of weights and caches, 0: no limit.
    pub memory: AtomicUsize,
    /// Seconds after which an LLM that nobody uses is unloaded, 0: never.
    pub idle: AtomicU64,
}

/// What the engine has not looked at yet.
#[derive(Default)]
pub struct Arrivals {
    pub jobs: Vec<Job>,
    pub loads: Vec<Load>,
    pub prepared: Vec<Prepared>,
}

/// Between the threads.
pub struct Inbox {
    inbox: Mutex<Arrivals>,
    come: Condvar,
    /// A sender left, or something is in the inbox: the engine looks between two layers.
    pub news: AtomicBool,
    /// The process ends.
    pub stop: AtomicBool,
    pub settings: Settings,
    pub outbox: Outbox,
    /// What is in memory, as JSON, for the views.
    pub described: Mutex<String>,
}

impl Inbox {
    pub fn new(outbox: Outbox, settings: Settings) -> Inbox {
        Inbox {
            inbox: Mutex::default(),
            come: Condvar::new(),
            news: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            settings,
            outbox,
            described: Mutex::new("[]".to_owned()),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Arrivals)) {
        change(&mut self.inbox.lock());
        self.news.store(true, Ordering::SeqCst);
        self.come.notify_one();
    }

    /// Hands jobs to the engine.
    pub fn push(&self, jobs: Vec<Job>) {
        self.tell(|inbox| inbox.jobs.extend(jobs));
    }

    /// Hands a loaded model to the engine.
    pub fn loaded(&self, load: Load) {
        self.tell(|inbox| inbox.loads.push(load));
    }

    /// Hands a prompt to the engine.
    pub fn prepared(&self, prepared: Prepared) {
        self.tell(|inbox| inbox.prepared.push(prepared));
    }

    /// A sender is gone: the engine drops its work.
    pub fn sender_left(&self) {
        self.tell(|_| ());
    }

    /// Ends the engine.
    pub fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.tell(|_| ());
    }

    /// Everything that came; with nothing else to do, waits up to `patience` for it.
    pub fn take(&self, patience: Option<Duration>) -> Arrivals {
        let mut inbox = self.inbox.lock();
        let news = || self.news.load(Ordering::SeqCst);
        if let Some(patience) = patience
            && !news()
        {
            self.come.wait_for(&mut inbox, patience);
        }
        self.news.store(false, Ordering::SeqCst);
        std::mem::take(&mut inbox)
    }

    /// Sends replies to items. Counts those that are the last of their item.
    pub fn reply(&self, replies: Vec<(Arc<Sender>, u64, Reply)>) {
        let counters = &self.outbox.account.counters;
        let mut answers = Vec::with_capacity(replies.len());
        for (sender, number, reply) in replies {
            let mut error = None;
            if let Reply::Failed(failure) = &reply {
                add(&counters.errors, 1);
                error = Some(failure.message.clone());
            }
            if reply.is_last() {
                add(&counters.requests, 1);
                sender.finished();
            }
            match encode_reply(number, &reply) {
                Ok(message) => answers.push(Answer {
                    sender,
                    bytes: 0,
                    message,
                    error,
                }),
                Err(bad) => {
                    let failure = unsendable(&bad);
                    if error.is_none() {
                        add(&counters.errors, 1);
                    }
                    let error = Some(failure.to_string());
                    if let Ok(message) = encode_reply(number, &Reply::Failed(failure)) {
                        answers.push(Answer {
                            sender,
                            bytes: 0,
                            message,
                            error,
                        });
                    }
                }
            }
        }
        self.outbox.push(answers);
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::decode_reply;
    use super::*;
    use crate::serve::ipc::queues::Account;
    use crate::serve::ipc::statistics::Progress;
    use crate::serve::ipc::wire::MAX_MESSAGE;
    use std::os::fd::{FromRawFd, OwnedFd};

    #[test]
    fn a_reply_that_is_no_message_is_answered_with_an_error() {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors, which are ours then.
        let [_read, write] = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK), 0);
            ends.map(|end| OwnedFd::from_raw_fd(end))
        };
        let account: &'static Account = Box::leak(Box::default());
        let progress: &'static Progress = Box::leak(Box::default());
        let inbox = Inbox::new(Outbox::new(write, account), Settings::default());
        let sender = Arc::new(Sender {
            slot: 0,
            serial: 0,
            database: 1,
            user: 10,
            gone: false.into(),
            progress,
        });
        // Never touched, so it takes no memory.
        let values = vec![0.0; MAX_MESSAGE / 4 + 1];
        inbox.reply(vec![(sender, 3, Reply::Embeds { columns: 1, values })]);
        let answers = inbox.outbox.take();
        assert_eq!(answers.len(), 1);
        assert!(answers[0].error.is_some());
        let message = answers[0].message.get(4..).expect("a message");
        let (number, reply) = decode_reply(message).expect("a reply");
        assert_eq!(number, 3);
        assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    }
}
