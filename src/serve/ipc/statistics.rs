//! Counters, histograms and short texts in shared memory. Plain atomics: any process may read at any time.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// A text of at most `N` bytes that processes write rarely and read at any time.
///
/// A sequence lock: odd while a writer is at work. Writers wait for each other, and readers try again; neither for ever, since
/// a writer whose process ended in the midst of it leaves the cell odd. A reader then gives up, and the next writer takes the
/// cell over. Should the first one be only slow, two texts may mix once: they are words for people, nothing depends on them.
#[repr(C)]
pub struct TextCell<const N: usize> {
    sequence: AtomicU64,
    length: AtomicU64,
    bytes: [AtomicU8; N],
}

/// How often a cell is tried while somebody writes it: some milliseconds, where a text is written in less than one hundredth.
const PATIENCE: u32 = 2000;

/// A moment between two tries; the processor goes to others now and then, perhaps to the writer.
fn pause(tries: u32) {
    match tries % 64 {
        63 => std::thread::sleep(Duration::from_micros(200)),
        _ => std::hint::spin_loop(),
    }
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
        let mut tries = 0;
        // The number of this writer, odd: one more than the even one that it found, or two more than that of a writer who is gone.
        let mine = loop {
            let mine = match sequence.is_multiple_of(2) {
                true => sequence + 1,
                false if tries >= PATIENCE => sequence + 2,
                false => {
                    tries += 1;
                    pause(tries);
                    sequence = self.sequence.load(Ordering::Relaxed);
                    continue;
                }
            };
            match self
                .sequence
                .compare_exchange_weak(sequence, mine, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => break mine,
                Err(now) => sequence = now,
            }
        };
        fence(Ordering::Release);
        self.length.store(bytes.len() as u64, Ordering::Relaxed);
        for (cell, byte) in self.bytes.iter().zip(bytes) {
            cell.store(*byte, Ordering::Relaxed);
        }
        // Where another has taken over, the cell is that one's.
        let _ = self
            .sequence
            .compare_exchange(mine, mine + 1, Ordering::Release, Ordering::Relaxed);
    }

    /// The text now; nothing where a writer does not come to its end.
    pub fn get(&self) -> String {
        for tries in 0..PATIENCE {
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
            pause(tries);
        }
        String::new()
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
    /// Items answered from the work for an equal text.
    shared,
    /// Items whose sender left before they were answered.
    cancelled,
    /// Vectors made.
    vectors,
    /// Tokens that went through a model, special tokens included.
    tokens,
    /// Batches run.
    batches,
    /// Tokens of bulk batches, and tokens that they had room for.
    filled,
    budget,
    /// Items answered with an error.
    errors,
    /// Microseconds in which a batch was running.
    busy,
    /// Tokens a second, over the last seconds.
    tokens_per_second,
    /// Tokens a second while bulk batches run, smoothed; 0 before the first.
    speed,
    /// Models in memory now.
    models,
    /// Bytes of the models in memory now.
    model_bytes,
    /// Bytes of the worker that are in memory now.
    resident_bytes,
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

/// Buckets of a histogram: four an octave.
const BUCKETS: usize = 160;

/// How long things took: counts by microseconds, in buckets that grow by a quarter of an octave.
#[repr(C)]
pub struct Histogram([AtomicU64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Histogram([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Histogram {
    /// The bucket of a duration: below four microseconds one each, then four an octave.
    fn bucket(microseconds: u64) -> usize {
        if microseconds < 4 {
            return microseconds as usize;
        }
        let octave = microseconds.ilog2() as usize;
        let quarter = (microseconds >> (octave - 2)) as usize & 3;
        (4 * (octave - 1) + quarter).min(BUCKETS - 1)
    }

    /// The least duration of a bucket, in microseconds.
    fn floor(bucket: usize) -> f64 {
        match bucket {
            0..4 => bucket as f64,
            _ => (4 + bucket % 4) as f64 * 2f64.powi(bucket as i32 / 4 - 1),
        }
    }

    /// Counts one duration.
    pub fn count(&self, duration: Duration) {
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0[Self::bucket(microseconds)].fetch_add(1, Ordering::Relaxed);
    }

    /// The durations in milliseconds below which the given shares lie: the middle of their bucket, at most 10 % off.
    /// `None` while nothing was counted.
    pub fn quantiles<const N: usize>(&self, shares: [f64; N]) -> Option<[f64; N]> {
        let counts: Vec<u64> = self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        if all == 0 {
            return None;
        }
        Some(shares.map(|share| {
            let wanted = ((all as f64 * share).ceil() as u64).max(1);
            let mut below = 0;
            let found = counts.iter().position(|count| {
                below += count;
                below >= wanted
            });
            let bucket = found.unwrap_or(BUCKETS - 1);
            (Self::floor(bucket) + Self::floor(bucket + 1)) / 2000.0
        }))
    }
}

/// How long items waited and ran, by lane: query, bulk.
#[derive(Default)]
#[repr(C)]
pub struct Latencies {
    /// From the arrival at the worker to the start of the first batch.
    pub wait: [Histogram; 2],
    /// From there to the answer.
    pub run: [Histogram; 2],
}

/// What the worker has done for one sender.
#[derive(Default)]
#[repr(C)]
pub struct Progress {
    /// Tokens that were run.
    pub tokens: AtomicU64,
    /// Sequences in the batch that runs now.
    pub running: AtomicU32,
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
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles([0.5]), None);
        // 1..=1000 ms: the median is 500, the 99th percentile 990.
        (1..=1000).for_each(|n| histogram.count(Duration::from_millis(n)));
        let [half, most] = histogram.quantiles([0.5, 0.99]).expect("counted");
        assert!((half / 500.0 - 1.0).abs() < 0.13, "{half}");
        assert!((most / 990.0 - 1.0).abs() < 0.13, "{most}");
        for microseconds in (0..40).map(|shift| 1u64 << shift).chain([3, 5, 7, 1000, 12345]) {
            let bucket = Histogram::bucket(microseconds);
            assert!(Histogram::floor(bucket) <= microseconds as f64, "{microseconds}");
            assert!(
                bucket == BUCKETS - 1 || Histogram::floor(bucket + 1) > microseconds as f64,
                "{microseconds}"
            );
        }
        histogram.count(Duration::MAX);
    }

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
    fn a_cell_whose_writer_is_gone_holds_nobody_up() {
        let cell: &'static TextCell<8> = Box::leak(Box::default());
        cell.set("before");
        cell.sequence.fetch_add(1, Ordering::SeqCst);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let read = cell.get();
            cell.set("after");
            sender.send((read, cell.get()))
        });
        let found = receiver
            .recv_timeout(Duration::from_secs(10))
            .expect("neither waits for ever");
        assert_eq!(found, (String::new(), "after".to_owned()));
        assert!(cell.sequence.load(Ordering::SeqCst).is_multiple_of(2));
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
