//! Which answer begins next, where memory for keys and values does not suffice for all.
//!
//! Databases share by the tokens that their answers may take, and so do the roles of one ([`FairQueue`]). The memory of an
//! answer is held from its first token to its last, so a role that was alone takes at most three quarters of it, and an answer for
//! which there is no room lets those of others pass. Not for ever: one that has waited for [`PATIENCE`] goes before all that
//! came later.

use super::planner::flow;
use super::runtime::Request;
use crate::serve::fair_queue::{FairQueue, Flow};
use crate::serve::ipc::queues::Sender;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After which nobody passes an answer that waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose an answer is.
pub struct Active {
    pub sender: Arc<Sender>,
    pub number: u64,
}

struct Waiting {
    owner: Active,
    request: Request,
    bytes: usize,
    since: Instant,
}

/// Answers that have not begun, and the memory of those that have.
#[derive(Default)]
pub struct Pending {
    order: FairQueue<u64>,
    /// By key, so in the order of arrival.
    waiting: BTreeMap<u64, Waiting>,
    begun: HashMap<u64, (Flow, usize)>,
}

impl Pending {
    /// Takes an answer that will hold so many bytes. Keys ascend.
    pub fn push(&mut self, key: u64, owner: Active, request: Request, bytes: usize, since: Instant) {
        self.order.push(flow(&owner.sender), key);
        let waiting = Waiting {
            owner,
            request,
            bytes,
            since,
        };
        self.waiting.insert(key, waiting);
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Answers that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Those that begin now, where `room` of `budget` bytes are free.
    pub fn admit(&mut self, room: usize, budget: usize, now: Instant) -> Vec<(u64, Active, Request)> {
        let mut room = room;
        let mut chosen = Vec::new();
        // Those that have waited for long, in the order of arrival; nobody else as long as one of them has no room.
        let late = |waiting: &Waiting| now.saturating_duration_since(waiting.since) >= PATIENCE;
        let overdue: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, one)| late(one))
            .map(|(key, _)| *key)
            .collect();
        for key in overdue {
            match self.waiting.get(&key) {
                Some(one) if one.bytes <= room => room -= one.bytes,
                _ => return self.begin(chosen),
            }
            self.note(key);
            chosen.push(key);
        }
        self.order.retain(|key| !chosen.contains(key));
        let (waiting, begun) = (&self.waiting, &mut self.begun);
        self.order.fill_while(
            |_| true,
            |queue| {
                let key = *queue.front()?;
                let Some(one) = waiting.get(&key) else {
                    queue.pop_front();
                    return Some(0);
                };
                let own = flow(&one.owner.sender);
                let held: usize = begun
                    .values()
                    .filter(|(flow, _)| *flow == own)
                    .map(|(_, bytes)| bytes)
                    .sum();
                if one.bytes > room || (held > 0 && held + one.bytes > budget / 4 * 3) {
                    return None;
                }
                queue.pop_front();
                room -= one.bytes;
                begun.insert(key, (own, one.bytes));
                chosen.push(key);
                Some(one.request.prompt.len() + one.request.max_tokens)
            },
        );
        self.begin(chosen)
    }

    fn note(&mut self, key: u64) {
        if let Some(one) = self.waiting.get(&key) {
            self.begun.insert(key, (flow(&one.owner.sender), one.bytes));
        }
    }

    fn begin(&mut self, chosen: Vec<u64>) -> Vec<(u64, Active, Request)> {
        self.order.retain(|key| !chosen.contains(key));
        let begins = chosen.into_iter().filter_map(|key| {
            let one = self.waiting.remove(&key)?;
            Some((key, one.owner, one.request))
        });
        begins.collect()
    }

    /// An answer that had begun is over.
    pub fn release(&mut self, key: u64) {
        self.begun.remove(&key);
    }

    /// Forgets the answers whose sender has left; says how many those were.
    pub fn drop_left(&mut self) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|_, one| !one.owner.sender.has_left());
        let (waiting, order) = (&self.waiting, &mut self.order);
        if waiting.len() < before {
            order.retain(|key| waiting.contains_key(key));
        }
        before - waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::llm::Prompt;
    use crate::serve::ipc::queues::Sender;
    use crate::serve::ipc::statistics::Progress;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    const BUDGET: usize = 100;

    fn owner(database: u32, user: u32) -> Active {
        let progress: &'static Progress = Box::leak(Box::default());
        let sender = Sender {
            slot: 0,
            serial: 0,
            database,
            user,
            gone: false.into(),
            progress,
        };
        Active {
            sender: Arc::new(sender),
            number: 0,
        }
    }

    fn request() -> Request {
        Request {
            prompt: Prompt::of_ids(&[1, 2]),
            max_tokens: 8,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
        }
    }

    fn keys(begun: Vec<(u64, Active, Request)>) -> Vec<u64> {
        begun.into_iter().map(|(key, ..)| key).collect()
    }

    #[test]
    fn roles_take_turns_and_leave_one_another_room() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for key in 0..20 {
            pending.push(key, owner(1, 1), request(), 10, now);
        }
        // One role alone has three quarters.
        assert_eq!(keys(pending.admit(BUDGET, BUDGET, now)), [0, 1, 2, 3, 4, 5, 6]);
        pending.push(20, owner(1, 2), request(), 10, now);
        pending.push(21, owner(2, 1), request(), 10, now);
        pending.push(22, owner(2, 1), request(), 10, now);
        assert_eq!(
            keys(pending.admit(30, BUDGET, now)),
            [21, 20, 22],
            "the database with less first"
        );
        (0..7).for_each(|key| pending.release(key));
        pending.push(23, owner(2, 1), request(), 10, now);
        let next = keys(pending.admit(20, BUDGET, now));
        assert!(next.contains(&23) && next.contains(&7), "{next:?}");
    }

    #[test]
    fn a_large_answer_lets_others_pass_for_a_while() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.push(0, owner(1, 1), request(), 90, now);
        pending.push(1, owner(1, 2), request(), 20, now);
        assert_eq!(keys(pending.admit(50, BUDGET, now)), [1]);
        let later = now + PATIENCE;
        pending.push(2, owner(1, 2), request(), 20, later);
        assert_eq!(
            keys(pending.admit(50, BUDGET, later)),
            [0; 0],
            "nobody passes it any more"
        );
        assert_eq!(keys(pending.admit(100, BUDGET, later)), [0]);
        assert_eq!(keys(pending.admit(10, BUDGET, later)), [0; 0]);
        assert_eq!(keys(pending.admit(20, BUDGET, later)), [2]);
    }

    #[test]
    fn answers_leave_with_their_senders() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let leaving = owner(1, 1);
        let sender = leaving.sender.clone();
        pending.push(0, leaving, request(), 10, now);
        pending.push(1, owner(1, 1), request(), 10, now);
        sender.gone.store(true, Ordering::Relaxed);
        assert_eq!((pending.drop_left(), pending.len()), (1, 1));
        assert_eq!(keys(pending.admit(BUDGET, BUDGET, now)), [1]);
        assert!(pending.is_empty());
    }
}
