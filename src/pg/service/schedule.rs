//! Whose work goes into the next batch: round-robin over the senders of a lane.

use std::collections::{BTreeMap, VecDeque};

/// The queues of one lane: one for each sender, taken from in turn.
pub struct Rotation<J> {
    queues: BTreeMap<usize, VecDeque<J>>,
    /// The sender that was served last.
    last: usize,
}

impl<J> Default for Rotation<J> {
    fn default() -> Self {
        Rotation {
            queues: BTreeMap::new(),
            last: usize::MAX,
        }
    }
}

impl<J> Rotation<J> {
    /// Appends a job to its sender's queue.
    pub fn push(&mut self, sender: usize, job: J) {
        self.queues.entry(sender).or_default().push_back(job);
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    /// Forgets the jobs for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&J) -> bool) {
        self.queues.retain(|_, queue| {
            queue.retain(&mut keep);
            !queue.is_empty()
        });
    }

    /// Fills a batch: goes round the senders, beginning after the one that was served last, and calls `take` with each
    /// one's queue, until `budget` is reached or no sender gives anything. `take` takes one piece of work from the
    /// front of the queue and says what it costs; `None` where this sender has nothing for this batch. The last piece
    /// may exceed the budget. Returns the sum of the costs.
    pub fn fill(&mut self, budget: usize, mut take: impl FnMut(&mut VecDeque<J>) -> Option<usize>) -> usize {
        let mut total = 0;
        let mut order: Vec<usize> = self.queues.keys().copied().collect();
        let first = order.partition_point(|sender| self.last != usize::MAX && *sender <= self.last);
        order.rotate_left(first);
        while !order.is_empty() && total < budget {
            order.retain(|sender| {
                if total >= budget {
                    return true;
                }
                let Some(queue) = self.queues.get_mut(sender) else {
                    return false;
                };
                let cost = take(queue);
                if queue.is_empty() {
                    self.queues.remove(sender);
                }
                match cost {
                    Some(cost) => {
                        self.last = *sender;
                        total += cost;
                        true
                    }
                    None => false,
                }
            });
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jobs are (sender, cost); the batch is the senders in the order in which they were served.
    fn fill(rotation: &mut Rotation<(usize, usize)>, budget: usize) -> Vec<usize> {
        let mut batch = Vec::new();
        rotation.fill(budget, |queue| {
            let (sender, cost) = queue.pop_front()?;
            batch.push(sender);
            Some(cost)
        });
        batch
    }

    #[test]
    fn senders_take_turns_across_batches() {
        let mut rotation = Rotation::default();
        for sender in [3, 5, 9] {
            (0..10).for_each(|_| rotation.push(sender, (sender, 1)));
        }
        assert_eq!(fill(&mut rotation, 4), [3, 5, 9, 3]);
        assert_eq!(fill(&mut rotation, 4), [5, 9, 3, 5]);
        assert_eq!(rotation.len(), 22);
        rotation.retain(|job| job.0 != 9);
        assert_eq!(fill(&mut rotation, 3), [3, 5, 3]);
        assert_eq!(fill(&mut rotation, 100).len(), 11);
        assert!(rotation.is_empty());
        assert_eq!(fill(&mut rotation, 100), Vec::<usize>::new());
    }

    #[test]
    fn a_sender_with_nothing_for_this_batch_keeps_its_jobs() {
        let mut rotation = Rotation::default();
        rotation.push(1, (1, 5));
        rotation.push(2, (2, 5));
        let total = rotation.fill(100, |queue| {
            if queue.front().is_some_and(|job| job.0 == 1) {
                return None;
            }
            queue.pop_front().map(|job| job.1)
        });
        assert_eq!((total, rotation.len()), (5, 1));
    }

    #[test]
    fn one_large_job_does_not_shut_out_the_others() {
        let mut rotation = Rotation::default();
        (0..100).for_each(|_| rotation.push(0, (0, 10)));
        rotation.push(1, (1, 1));
        assert!(fill(&mut rotation, 20).contains(&1));
    }
}
