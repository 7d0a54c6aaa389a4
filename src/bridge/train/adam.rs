//! Adam (Kingma and Ba 2015) over the rows of a table, of which a step touches few.
//!
//! Moments of a row stand still while no query uses it; the bias correction counts all steps. (So a rare token's first
//! step is as long as a common one's.)

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// Moments of a table of numbers.
#[derive(Clone, Debug)]
pub struct Adam {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
    pub steps: u32,
}

impl Adam {
    /// For a table of that many numbers.
    pub fn new(numbers: usize) -> Adam {
        Adam {
            first: vec![0.0; numbers],
            second: vec![0.0; numbers],
            steps: 0,
        }
    }

    /// Bytes of the moments, for a checkpoint.
    pub fn bytes(&self) -> Vec<u8> {
        let numbers = self.first.iter().chain(&self.second);
        let bytes = numbers.flat_map(|number| number.to_le_bytes());
        self.steps.to_le_bytes().into_iter().chain(bytes).collect()
    }

    /// Takes the moments of [`Adam::bytes`]; false where they are of another table.
    pub fn restore(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() != 4 + 8 * self.first.len() {
            return false;
        }
        let mut words = bytes.as_chunks::<4>().0.iter();
        self.steps = words.next().map_or(0, |word| u32::from_le_bytes(*word));
        for (number, word) in self.first.iter_mut().chain(&mut self.second).zip(words) {
            *number = f32::from_le_bytes(*word);
        }
        true
    }

    /// Counts a step: to be called once before the updates of one.
    pub fn begin(&mut self) {
        self.steps += 1;
    }

    /// Moves the numbers at `start..` against their gradient; `decay` pulls them to zero (an L2 penalty of
    /// `decay / 2 * x^2`, as part of the gradient).
    pub fn update(&mut self, numbers: &mut [f32], start: usize, gradient: &[f32], rate: f32, decay: f32) {
        let end = start + gradient.len();
        let parts = (numbers.get_mut(start..end), self.first.get_mut(start..end));
        let ((Some(numbers), Some(first)), Some(second)) = (parts, self.second.get_mut(start..end)) else {
            return;
        };
        let correct1 = 1.0 - BETA1.powi(self.steps as i32);
        let correct2 = 1.0 - BETA2.powi(self.steps as i32);
        for (((x, m), v), g) in numbers.iter_mut().zip(first).zip(second).zip(gradient) {
            let g = g + decay * *x;
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *v = BETA2 * *v + (1.0 - BETA2) * g * g;
            *x -= rate * (*m / correct1) / ((*v / correct2).sqrt() + EPSILON);
        }
    }
}
