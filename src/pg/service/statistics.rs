//! Counters and short texts in shared memory. Plain atomics: any process may read at any time.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// A text of at most `N` bytes that processes write rarely and read at any time.
///
/// A sequence lock: odd while a writer is at work. Writers wait for each other (a writer that is killed takes the
/// whole server through crash recovery, which makes the memory anew); readers try again.
#[repr(C)]
pub struct TextCell<const N: usize> {
    sequence: AtomicU64,
    length: AtomicU64,
    bytes: [AtomicU8; N],
}

impl<const N: usize> TextCell<N> {
    /// An empty text.
    pub const fn new() -> Self {
        TextCell {
            sequence: AtomicU64::new(0),
            length: AtomicU64::new(0),
            bytes: [const { AtomicU8::new(0) }; N],
        }
    }

    /// Replaces the text, cut on a character border where it is too long.
    pub fn set(&self, text: &str) {
        let bytes = &text.as_bytes()[..text.floor_char_boundary(N)];
        let mut sequence = self.sequence.load(Ordering::Relaxed);
        loop {
            if sequence.is_multiple_of(2) {
                match self
                    .sequence
                    .compare_exchange_weak(sequence, sequence + 1, Ordering::Acquire, Ordering::Relaxed)
                {
                    Ok(_) => break,
                    Err(now) => sequence = now,
                }
            } else {
                std::hint::spin_loop();
                sequence = self.sequence.load(Ordering::Relaxed);
            }
        }
        fence(Ordering::Release);
        self.length.store(bytes.len() as u64, Ordering::Relaxed);
        for (cell, byte) in self.bytes.iter().zip(bytes) {
            cell.store(*byte, Ordering::Relaxed);
        }
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    /// The text now.
    pub fn get(&self) -> String {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let length = (self.length.load(Ordering::Relaxed) as usize).min(N);
            let bytes: Vec<u8> = self.bytes[..length]
                .iter()
                .map(|cell| cell.load(Ordering::Relaxed))
                .collect();
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && before == self.sequence.load(Ordering::Relaxed) {
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            std::hint::spin_loop();
        }
    }
}

impl<const N: usize> Default for TextCell<N> {
    fn default() -> Self {
        TextCell::new()
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the worker counts. All since the server started, unless said otherwise.
        #[derive(Default)]
        #[repr(C)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64,)* }
    };
}

counters! {
    /// Items answered, errors included.
    requests,
    /// Vectors made.
    vectors,
    /// Tokens that went through a model, special tokens included.
    tokens,
    /// Batches run.
    batches,
    /// Items answered with an error.
    errors,
    /// Microseconds in which a batch was running.
    busy,
    /// Tokens a second, over the last seconds.
    tokens_per_second,
    /// Models in memory now.
    models,
    /// Bytes of the models in memory now.
    model_bytes,
    /// Items of the query lane that wait or run now.
    queued_queries,
    /// Items of the bulk lane that wait or run now.
    queued_bulk,
    /// Workers that ended and were started again.
    restarts,
    /// When the worker started: microseconds since 2000-01-01 UTC, 0 without a worker.
    started_at,
    /// When the last error happened, in the same measure.
    last_error_at,
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Replaces a counter.
pub fn put(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}

/// Reads a counter.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cell = TextCell::<5>::new();
        assert_eq!(cell.get(), "");
        cell.set("abcdü");
        assert_eq!(cell.get(), "abcd");
        cell.set("x");
        assert_eq!(cell.get(), "x");
    }

    #[test]
    fn readers_never_see_half_a_text() {
        let cell: &'static TextCell<64> = Box::leak(Box::default());
        let writers: Vec<_> = ["a", "b"]
            .into_iter()
            .map(|letter| {
                std::thread::spawn(move || {
                    for length in 0..20_000 {
                        cell.set(&letter.repeat(length % 64));
                    }
                })
            })
            .collect();
        for _ in 0..20_000 {
            let text = cell.get();
            assert!(text.bytes().all(|byte| byte == text.as_bytes()[0]), "{text}");
        }
        writers
            .into_iter()
            .for_each(|writer| writer.join().expect("a writer ends"));
    }
}
