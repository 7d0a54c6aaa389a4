//! Whose work goes next: databases share a lane by what their work costs, and so do the senders of one database.
//!
//! Two levels of start-time fair queueing (Goyal, Vin and Cheng, 1996): whoever was served least goes next. A queue's
//! `served` is what it has cost so far; a level's `clock` is the `served` of the queue that was chosen last. One that
//! comes (back) starts at the clock at least, so that time without work earns nothing, and a short absence forgives
//! nothing.

use std::collections::{BTreeMap, VecDeque};

/// Where a job comes from: the database first, then the sender in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub database: u32,
    pub sender: usize,
}

struct Queue<J> {
    served: u64,
    jobs: VecDeque<J>,
}

struct Database<J> {
    served: u64,
    clock: u64,
    senders: BTreeMap<usize, Queue<J>>,
}

/// The queues of one lane: one for each sender.
pub struct FairQueue<J> {
    clock: u64,
    databases: BTreeMap<u32, Database<J>>,
}

impl<J> Default for FairQueue<J> {
    fn default() -> Self {
        FairQueue {
            clock: 0,
            databases: BTreeMap::new(),
        }
    }
}

impl<J> Database<J> {
    fn waits(&self) -> bool {
        self.senders.values().any(|queue| !queue.jobs.is_empty())
    }
}

impl<J> FairQueue<J> {
    fn queue(&mut self, flow: Flow) -> &mut VecDeque<J> {
        let clock = self.clock;
        let database = self.databases.entry(flow.database).or_insert(Database {
            served: clock,
            clock: 0,
            senders: BTreeMap::new(),
        });
        if !database.waits() {
            database.served = database.served.max(clock);
        }
        let clock = database.clock;
        let queue = database.senders.entry(flow.sender).or_insert(Queue {
            served: clock,
            jobs: VecDeque::new(),
        });
        if queue.jobs.is_empty() {
            queue.served = queue.served.max(clock);
        }
        &mut queue.jobs
    }

    /// Appends a job to its sender's queue.
    pub fn push(&mut self, flow: Flow, job: J) {
        self.queue(flow).push_back(job);
    }

    /// Puts a job before the others of its sender.
    pub fn push_front(&mut self, flow: Flow, job: J) {
        self.queue(flow).push_front(job);
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        !self.databases.values().any(Database::waits)
    }

    /// Forgets the jobs for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&J) -> bool) {
        for database in self.databases.values_mut() {
            database
                .senders
                .values_mut()
                .for_each(|queue| queue.jobs.retain(&mut keep));
        }
    }

    /// Books a cost (or, negative, its return) on a sender beside what [`FairQueue::fill`] booked.
    pub fn charge(&mut self, flow: Flow, cost: i64) {
        if let Some(database) = self.databases.get_mut(&flow.database) {
            database.served = database.served.saturating_add_signed(cost);
            if let Some(queue) = database.senders.get_mut(&flow.sender) {
                queue.served = queue.served.saturating_add_signed(cost);
            }
        }
    }

    /// The sender with work that goes next, of those that have not refused.
    fn least(&self, refused: &[Flow]) -> Option<Flow> {
        let waiting = |(sender, queue): &(&usize, &Queue<J>), database: u32| {
            !queue.jobs.is_empty()
                && !refused.contains(&Flow {
                    database,
                    sender: **sender,
                })
        };
        let mut best: Option<(u64, Flow)> = None;
        for (number, database) in &self.databases {
            if best.is_some_and(|(served, _)| served <= database.served) {
                continue;
            }
            let senders = database.senders.iter().filter(|entry| waiting(entry, *number));
            if let Some((sender, _)) = senders.min_by_key(|(_, queue)| queue.served) {
                let flow = Flow {
                    database: *number,
                    sender: *sender,
                };
                best = Some((database.served, flow));
            }
        }
        best.map(|(_, flow)| flow)
    }

    /// Fills a batch: calls `take` with the queue of the sender that goes next, until `budget` is reached or no sender
    /// gives anything. `take` takes one piece of work from the front of the queue and says what it costs; `None` where
    /// this sender has nothing for this batch. The last piece may exceed the budget. Returns the sum of the costs.
    pub fn fill(&mut self, budget: usize, take: impl FnMut(&mut VecDeque<J>) -> Option<usize>) -> usize {
        self.fill_while(|total| total < budget, take)
    }

    /// [`FairQueue::fill`] for a budget that becomes known with the first piece: goes on while `more(total)`.
    pub fn fill_while(
        &mut self,
        more: impl Fn(usize) -> bool,
        mut take: impl FnMut(&mut VecDeque<J>) -> Option<usize>,
    ) -> usize {
        let mut total = 0;
        let mut refused = Vec::new();
        while more(total) {
            let Some(flow) = self.least(&refused) else { break };
            let Some(database) = self.databases.get_mut(&flow.database) else {
                break;
            };
            let Some(queue) = database.senders.get_mut(&flow.sender) else {
                break;
            };
            let (before, inside) = (database.served, queue.served);
            match take(&mut queue.jobs) {
                Some(cost) => {
                    self.clock = self.clock.max(before);
                    database.clock = database.clock.max(inside);
                    queue.served += cost as u64;
                    database.served += cost as u64;
                    total += cost;
                }
                None => refused.push(flow),
            }
        }
        self.prune();
        total
    }

    /// Forgets queues without jobs whose account the clock has passed.
    fn prune(&mut self) {
        let clock = self.clock;
        self.databases.retain(|_, database| {
            let inside = database.clock;
            database
                .senders
                .retain(|_, queue| !queue.jobs.is_empty() || queue.served > inside);
            database.waits() || database.served > clock
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(database: u32, sender: usize) -> Flow {
        Flow { database, sender }
    }

    /// Jobs are (sender, cost); the batch is the senders in the order in which they were served.
    fn fill(fair: &mut FairQueue<(usize, usize)>, budget: usize) -> Vec<usize> {
        let mut batch = Vec::new();
        fair.fill(budget, |queue| {
            let (sender, cost) = queue.pop_front()?;
            batch.push(sender);
            Some(cost)
        });
        batch
    }

    #[test]
    fn senders_take_turns_across_batches() {
        let mut fair = FairQueue::default();
        for sender in [3, 5, 9] {
            (0..10).for_each(|_| fair.push(flow(1, sender), (sender, 1)));
        }
        assert_eq!(fill(&mut fair, 4), [3, 5, 9, 3]);
        assert_eq!(fill(&mut fair, 4), [5, 9, 3, 5]);
        fair.retain(|job| job.0 != 9);
        assert_eq!(fill(&mut fair, 3), [3, 5, 3]);
        assert_eq!(fill(&mut fair, 100).len(), 11);
        assert!(fair.is_empty());
        assert_eq!(fill(&mut fair, 100), Vec::<usize>::new());
    }

    #[test]
    fn a_sender_with_nothing_for_this_batch_keeps_its_jobs() {
        let mut fair = FairQueue::default();
        fair.push(flow(1, 1), (1, 5));
        fair.push(flow(1, 2), (2, 5));
        let total = fair.fill(100, |queue| {
            if queue.front().is_some_and(|job| job.0 == 1) {
                return None;
            }
            queue.pop_front().map(|job| job.1)
        });
        assert_eq!((total, fair.is_empty()), (5, false));
    }

    #[test]
    fn one_large_job_does_not_shut_out_the_others() {
        let mut fair = FairQueue::default();
        (0..100).for_each(|_| fair.push(flow(1, 0), (0, 10)));
        fair.push(flow(1, 1), (1, 1));
        assert!(fill(&mut fair, 20).contains(&1));
    }

    #[test]
    fn twenty_senders_of_one_database_get_no_more_than_one_of_another() {
        let mut fair = FairQueue::default();
        for sender in 0..20 {
            (0..200).for_each(|_| fair.push(flow(1, sender), (sender, 7)));
        }
        (0..2000).for_each(|_| fair.push(flow(2, 20), (20, 13)));
        let mut cost = [0usize; 21];
        for _ in 0..40 {
            fair.fill(256, |queue| {
                let (sender, tokens) = queue.pop_front()?;
                cost[sender] += tokens;
                Some(tokens)
            });
        }
        let crowd: usize = cost[..20].iter().sum();
        let share = cost[20] as f64 / (crowd + cost[20]) as f64;
        assert!((0.49..0.51).contains(&share), "the single sender got {share}");
        assert!(
            cost[..20].iter().all(|tokens| tokens.abs_diff(crowd / 20) <= 7),
            "{cost:?}"
        );
    }

    #[test]
    fn time_without_work_earns_nothing_and_a_short_absence_forgives_nothing() {
        let mut fair = FairQueue::default();
        (0..100).for_each(|_| fair.push(flow(1, 1), (1, 10)));
        fill(&mut fair, 500);
        // Database 2 comes late: it gets its half from now on, not the 500 that it missed.
        (0..100).for_each(|_| fair.push(flow(2, 2), (2, 10)));
        let batch = fill(&mut fair, 200);
        assert_eq!(batch.iter().filter(|sender| **sender == 2).count(), 10, "{batch:?}");
        // A sender that always has just one large job does not outdo one that has many small ones.
        let mut fair = FairQueue::default();
        (0..1000).for_each(|_| fair.push(flow(1, 1), (1, 1)));
        let (mut large, mut small) = (0, 0);
        for _ in 0..30 {
            fair.push(flow(2, 2), (2, 50));
            let batch = fill(&mut fair, 20);
            large += 50 * batch.iter().filter(|sender| **sender == 2).count();
            small += batch.iter().filter(|sender| **sender == 1).count();
        }
        assert!(large.abs_diff(small) <= 50, "{large} and {small}");
    }

    #[test]
    fn costs_can_be_booked_later() {
        let mut fair = FairQueue::default();
        (0..10).for_each(|_| fair.push(flow(1, 1), (1, 1)));
        (0..10).for_each(|_| fair.push(flow(1, 2), (2, 1)));
        assert_eq!(fill(&mut fair, 1), [1]);
        fair.charge(flow(1, 1), 4);
        assert_eq!(fill(&mut fair, 6), [2, 2, 2, 2, 2, 1]);
    }
}
