//! Lanes that a scan has read and not yet re-ranked, and what it left of the lists that it read in part.

use super::IndexError;
use super::memory_limit::reserve;
use super::page::{FIRST, Lane};
use super::store::Block;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// The bits of a bound, turned so that they order as the floats do.
#[inline]
fn ordered(bound: f32) -> u32 {
    let bits = bound.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Where a lane stands in a scan's order: bound, block, lane. Never two alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The bound's bits, turned so that they order as the floats do.
    bound: u32,
    block: Block,
    lane: u16,
}

impl Key {
    pub const START: Key = Key {
        bound: 0,
        block: 0,
        lane: 0,
    };

    #[inline]
    pub fn new(bound: f32, block: Block, lane: u16) -> Key {
        Key {
            bound: ordered(bound),
            block,
            lane,
        }
    }

    #[inline]
    pub fn bound(self) -> f32 {
        f32::from_bits(if self.bound >> 31 == 1 {
            self.bound & !(1 << 31)
        } else {
            !self.bound
        })
    }
}

/// A lane that was read. Ordered by key, reversed for the heap.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub key: Key,
    pub slot: u16,
    /// Position of the list in the scan's table.
    pub list: u32,
    pub vector: Block,
    pub ordinal: u32,
    pub tid: u64,
}

impl Candidate {
    /// A lane of the list at that position of the scan's table.
    #[inline]
    pub fn new(key: Key, list: u32, lane: &Lane) -> Candidate {
        Candidate {
            key,
            slot: lane.place.slot,
            list,
            vector: lane.place.block,
            ordinal: lane.ordinal & !FIRST,
            tid: lane.tid,
        }
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        other.key.cmp(&self.key)
    }
}

/// What was left of lists for a later reading, by their position in the scan's table: the least key of each.
#[derive(Default)]
pub struct Partial {
    least: Vec<Option<Key>>,
    /// The least of all, with its list.
    first: Option<(Key, u32)>,
}

impl Partial {
    /// Room for the list at `position`, so that [`Partial::leave`] allocates nothing.
    pub fn grow(&mut self, position: usize) -> Result<(), IndexError> {
        let more = (position + 1).saturating_sub(self.least.len());
        if more > 0 {
            reserve(&mut self.least, more)?;
            self.least.resize(position + 1, None);
        }
        Ok(())
    }

    /// Leaves a list from `key` on, or from where it was left before, if that is less.
    pub fn leave(&mut self, list: u32, key: Key) {
        let Some(least) = self.least.get_mut(list as usize) else {
            return;
        };
        if least.is_none_or(|least| key < least) {
            *least = Some(key);
            if self.first.is_none_or(|(first, _)| key < first) {
                self.first = Some((key, list));
            }
        }
    }

    /// The least key that was left, and its list.
    pub fn first(&self) -> Option<(Key, u32)> {
        self.first
    }

    /// Takes the least key and its list out.
    pub fn take_first(&mut self) -> Option<(Key, u32)> {
        let taken = self.first?;
        if let Some(least) = self.least.get_mut(taken.1 as usize) {
            *least = None;
        }
        let left = (0..)
            .zip(&self.least)
            .filter_map(|(list, key)| key.map(|key| (key, list)));
        self.first = left.min();
        Some(taken)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Partial::default();
    }
}

/// The least bounds that it was shown, as many as it was made for.
pub struct Least {
    count: usize,
    bounds: BinaryHeap<u32>,
}

impl Least {
    /// Keeps `count` bounds.
    pub fn new(count: usize) -> Result<Least, IndexError> {
        let mut bounds = BinaryHeap::new();
        reserve(&mut bounds, count + 1)?;
        Ok(Least { count, bounds })
    }

    /// Takes a bound in if it is among the least.
    pub fn show(&mut self, bound: f32) {
        self.bounds.push(ordered(bound));
        if self.bounds.len() > self.count {
            self.bounds.pop();
        }
    }

    /// Whether so many were shown, none of which is above `bound`.
    pub fn are_within(&self, bound: f32) -> bool {
        self.bounds.len() == self.count && self.bounds.peek().is_none_or(|last| *last <= ordered(bound))
    }
}
