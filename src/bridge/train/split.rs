//! Which documents train, which choose when training ends (validation), which give the figures (test); and the order in
//! which epochs go through what trains.

use crate::bridge::BridgeError;
use crate::random::Random;

/// Which split of the material a document belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Training,
    /// Chooses when training ends.
    Validation,
    /// Gives the figures.
    Test,
}

impl Split {
    /// The split of a document: by a hash of its number, so that it does not depend on the others. `held_out` is the
    /// share of the documents that are not trained on, half of it for validation.
    pub fn of(document: u32, held_out: f64, seed: u64) -> Split {
        let bits = Random::new(seed ^ u64::from(document).wrapping_mul(0x9e37_79b9_7f4a_7c15)).bits();
        let share = (bits >> 11) as f64 / (1u64 << 53) as f64;
        match share {
            share if share >= held_out => Split::Training,
            share if share >= held_out / 2.0 => Split::Validation,
            _ => Split::Test,
        }
    }
}

/// Numbers of items, by split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Splits {
    pub training: Vec<usize>,
    pub validation: Vec<usize>,
    pub test: Vec<usize>,
}

/// How material is split.
#[derive(Clone, Copy, Debug)]
pub struct SplitRule {
    /// Share of the documents that is held out, half of it for validation.
    pub held_out: f64,
    /// Most items of validation, and of test, drawn by the seed.
    pub measured: usize,
    /// Fewest items of each.
    pub fewest: usize,
    pub seed: u64,
}

impl SplitRule {
    /// Splits items, which are numbers with their documents; `what` names them.
    ///
    /// # Errors
    /// [`BridgeError::TooLittle`] where a split has too few.
    pub fn split(self, items: impl Iterator<Item = (usize, u32)>, what: &str) -> Result<Splits, BridgeError> {
        let mut splits = Splits::default();
        for (number, document) in items {
            match Split::of(document, self.held_out, self.seed) {
                Split::Training => splits.training.push(number),
                Split::Validation => splits.validation.push(number),
                Split::Test => splits.test.push(number),
            }
        }
        for held_out in [&mut splits.validation, &mut splits.test] {
            Random::new(self.seed).shuffle(held_out);
            held_out.truncate(self.measured);
        }
        let all = [&splits.training, &splits.validation, &splits.test];
        match all.map(Vec::len).into_iter().find(|count| *count < self.fewest) {
            Some(few) => Err(BridgeError::TooLittle(format!(
                "each of training, validation and test needs at least {} {what}; one has {few}; they are held out document \
                 by document",
                self.fewest
            ))),
            None => Ok(splits),
        }
    }
}

/// The order in which epochs go through `count` items, each shuffled by the seed; the last one asked for is kept.
pub struct Epochs {
    count: usize,
    seed: u64,
    epoch: usize,
    order: Vec<usize>,
}

impl Epochs {
    pub fn new(count: usize, seed: u64) -> Epochs {
        Epochs {
            count,
            seed,
            epoch: usize::MAX,
            order: Vec::new(),
        }
    }

    /// The item at a place, counted through all epochs. There is one item at least.
    pub fn at(&mut self, place: usize) -> usize {
        let (epoch, within) = (place / self.count, place % self.count);
        if epoch != self.epoch {
            self.order = (0..self.count).collect();
            Random::new(self.seed.wrapping_add(1 + epoch as u64)).shuffle(&mut self.order);
            self.epoch = epoch;
        }
        self.order[within]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: SplitRule = SplitRule {
        held_out: 0.2,
        measured: 30,
        fewest: 10,
        seed: 7,
    };

    #[test]
    fn a_document_is_in_one_split_and_held_out_ones_are_halved() {
        let items = (0..3000).map(|number| (number, number as u32 / 3));
        let splits = RULE.split(items, "pairs").expect("enough of each");
        assert!(
            (2250..2550).contains(&splits.training.len()),
            "{}",
            splits.training.len()
        );
        assert_eq!((splits.validation.len(), splits.test.len()), (30, 30));
        let split_of = |number: &usize| Split::of(*number as u32 / 3, 0.2, 7);
        assert!(splits.training.iter().all(|number| split_of(number) == Split::Training));
        assert!(
            splits
                .validation
                .iter()
                .all(|number| split_of(number) == Split::Validation)
        );
        assert!(splits.test.iter().all(|number| split_of(number) == Split::Test));
        let count = |wanted: Split| {
            (0..1000)
                .filter(|document| Split::of(*document, 0.2, 7) == wanted)
                .count()
        };
        assert!((70..130).contains(&count(Split::Validation)) && (70..130).contains(&count(Split::Test)));
    }

    #[test]
    fn a_split_with_too_few_is_an_error_that_names_them() {
        let error = RULE
            .split((0..40).map(|number| (number, number as u32)), "pairs")
            .unwrap_err();
        assert!(matches!(error, BridgeError::TooLittle(_)));
        assert!(error.to_string().contains("needs at least 10 pairs"), "{error}");
    }

    #[test]
    fn an_epoch_goes_through_every_item_once() {
        let mut epochs = Epochs::new(5, 1);
        let mut epoch = |number: usize| (0..5).map(|at| epochs.at(number * 5 + at)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        }
    }
}
