//! Items of many groups within a memory: whole groups, drawn by a seed, while they are read.
//!
//! Every group has a number drawn by the seed and its place. What is kept are the groups of the smallest numbers that
//! fit together, so it depends on the seed and on what is read, and not on the order in which memory ran full. Never
//! more than the memory and one item is held.

use super::data::Passage;
use crate::random::Random;
use std::collections::BTreeMap;

/// Bytes of vectors that a passage or query takes while it trains, over those of one vector: as it was read, packed, as
/// it is, mapped.
pub const COPIES: usize = 5;

/// What a training may hold of passages, or of pairs, and how they are drawn where there are more.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub memory: usize,
    pub seed: u64,
}

/// Bytes that a passage takes while it trains.
pub fn passage_bytes(passage: &Passage, dimensions: usize) -> usize {
    size_of::<Passage>() + passage.key.len() + passage.text.len() + COPIES * dimensions * size_of::<f32>()
}

/// As many documents, drawn by the seed, as fit with their vectors, and how many passages were left out; the order
/// stays.
pub fn sampled(passages: Vec<Passage>, dimensions: usize, bounds: Bounds) -> (Vec<Passage>, usize) {
    let mut sampler = Sampler::new(bounds);
    for passage in passages {
        let bytes = passage_bytes(&passage, dimensions);
        sampler.add(u64::from(passage.document), passage, bytes);
    }
    sampler.finish()
}

/// A group that is kept, under its number.
struct Group<T> {
    bytes: usize,
    items: Vec<T>,
}

/// Draws groups as they come.
pub struct Sampler<T> {
    memory: usize,
    seed: u64,
    used: usize,
    found: usize,
    /// By the drawn number and the group's place.
    kept: BTreeMap<(u64, u64), Group<T>>,
    /// Groups from this number on are left out: the smallest that had to go.
    out: Option<(u64, u64)>,
}

impl<T> Sampler<T> {
    /// Nothing yet; at most as many bytes of what comes are kept as the bounds allow.
    pub fn new(bounds: Bounds) -> Sampler<T> {
        Sampler {
            memory: bounds.memory,
            seed: bounds.seed,
            used: 0,
            found: 0,
            kept: BTreeMap::new(),
            out: None,
        }
    }

    fn number(&self, group: u64) -> (u64, u64) {
        let mixed = Random::new(group).bits() ^ self.seed.rotate_left(32);
        (Random::new(mixed).bits(), group)
    }

    /// Whether items of this group are not left out yet.
    pub fn takes(&self, group: u64) -> bool {
        self.out.is_none_or(|out| self.number(group) < out)
    }

    /// Takes an item of so many bytes into its group, or leaves the group out.
    pub fn add(&mut self, group: u64, item: T, bytes: usize) {
        self.found += 1;
        let number = self.number(group);
        if self.out.is_some_and(|out| number >= out) {
            return;
        }
        self.used += bytes;
        let group = self.kept.entry(number).or_insert_with(|| Group {
            bytes: 0,
            items: Vec::new(),
        });
        group.bytes += bytes;
        group.items.push(item);
        while self.used > self.memory
            && let Some((number, group)) = self.kept.pop_last()
        {
            self.used -= group.bytes;
            self.out = Some(number);
        }
    }

    /// The items that are kept, group by group in the order of the groups' places, and how many were left out.
    pub fn finish(self) -> (Vec<T>, usize) {
        let mut groups: Vec<((u64, u64), Group<T>)> = self.kept.into_iter().collect();
        groups.sort_by_key(|((_, place), _)| *place);
        let items: Vec<T> = groups.into_iter().flat_map(|(_, group)| group.items).collect();
        let out = self.found - items.len();
        (items, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(memory: usize, seed: u64, groups: u64) -> (Vec<(u64, u64)>, usize) {
        let mut sampler = Sampler::new(Bounds { memory, seed });
        for group in 0..groups {
            (0..3).for_each(|item| sampler.add(group, (group, item), 10));
        }
        sampler.finish()
    }

    #[test]
    fn what_fits_is_kept_in_its_order() {
        let (items, out) = draw(30 * 20, 1, 20);
        let all: Vec<_> = (0..20)
            .flat_map(|group| (0..3).map(move |item| (group, item)))
            .collect();
        assert_eq!((items, out), (all, 0));
    }

    #[test]
    fn of_more_whole_groups_are_drawn_and_memory_never_holds_more() {
        let (items, out) = draw(1000, 1, 200);
        assert_eq!(out + items.len(), 600);
        assert_eq!(items.len() % 3, 0);
        assert!((31..=33 * 3).contains(&items.len()), "{}", items.len());
        assert!(items.is_sorted());
        for group in items.chunks_exact(3) {
            assert!((0..3).all(|item| group[item as usize] == (group[0].0, item)));
        }
        assert_ne!(items, draw(1000, 2, 200).0, "another seed draws others");
        assert_eq!(items, draw(1000, 1, 200).0);
        // Early and late groups have the same chance.
        let early: usize = (0..200)
            .map(|seed| draw(1000, seed, 200).0.iter().filter(|(group, _)| *group < 100).count())
            .sum();
        let all: usize = (0..200).map(|seed| draw(1000, seed, 200).0.len()).sum();
        assert!((0.45..0.55).contains(&(early as f64 / all as f64)), "{early} of {all}");

        let mut sampler = Sampler::new(Bounds { memory: 1000, seed: 1 });
        for group in 0..10_000u64 {
            sampler.add(group, vec![0u8; 100], 100);
            assert!(sampler.used <= 1000 && sampler.kept.values().map(|group| group.items.len()).sum::<usize>() <= 10);
        }
    }

    #[test]
    fn what_is_drawn_within_less_memory_is_part_of_what_is_drawn_within_more() {
        let more = draw(2000, 7, 200).0;
        assert!(draw(1000, 7, 200).0.iter().all(|item| more.contains(item)));
    }

    #[test]
    fn a_group_that_does_not_fit_is_left_out_while_it_is_read() {
        let mut sampler = Sampler::new(Bounds { memory: 100, seed: 1 });
        for _ in 0..1000 {
            sampler.add(0, (), 10);
            assert!(sampler.used <= 100);
        }
        assert_eq!(sampler.finish(), (Vec::new(), 1000));
    }
}
