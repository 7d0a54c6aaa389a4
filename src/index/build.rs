//! Building an index: entries in, in any order; a finished index out.
//!
//! Memory: half of what is allowed keeps entries (what is more goes to a scratch file), a quarter the sample that
//! centroids are made from, the rest serves writing. The pages are written by `write.rs`.

use super::IndexError;
use super::calibrate::{QUERIES, Sample, Truth};
use super::kmeans::{assign, cluster};
use super::memory_limit::{collected, filled, full, reserve};
use super::meta::{Meta, check_options};
use super::page::{Counts, FIRST, Layout, RECORD_HEADER, u32_at, u64_at};
use super::rabitq::Centroid;
use super::recall::Curve;
use super::spool::{Records, SpoolFactory};
use super::store::PageStore;
use super::types::{BuildStats, Element, Entry, IndexOptions, Phase, Progress, Tid};
use super::vector::{check_entry, prepare, put_record, record_vector};
use super::write::Writer;
use crate::compute::memory::room_for;
use crate::compute::vectors::nearest_centroid::Panels;
use crate::compute::vectors::rotation::Rotation;
use crate::random::splitmix64;

/// Least memory a build works with, whatever it is allowed.
const MIN_MEMORY: usize = 1 << 20;
/// Sample vectors a centroid that k-means profits from.
const SAMPLE: usize = 64;
/// Most sample vectors, so that clustering stays short.
const MAX_SAMPLE: usize = 400_000;
/// Entries between two looks at the cancel flag while loading.
const CHECK_EVERY: u64 = 256;
/// Below this, one list is read faster than centroids are ranked.
const SMALL: u64 = 2048;

/// An index that is being built.
pub struct Build<S: PageStore> {
    store: S,
    options: IndexOptions,
    layout: Layout,
    memory: usize,
    threads: usize,
    spools: SpoolFactory,
    progress: Progress,
    entries: Records,
    sample: Reservoir,
    queries: Vec<Sample>,
    random: u64,
    rows: u64,
    skipped: u64,
    last: Option<Tid>,
    direction: Vec<f32>,
    rounded: Vec<f32>,
    record: Vec<u8>,
}

/// A uniform sample of what is shown to it.
struct Reservoir {
    d: usize,
    most: usize,
    seen: u64,
    rows: Vec<f32>,
}

impl Reservoir {
    fn show(&mut self, row: &[f32], random: &mut u64) -> Result<(), IndexError> {
        self.seen += 1;
        if self.rows.len() / self.d < self.most {
            reserve(&mut self.rows, row.len())?;
            self.rows.extend_from_slice(row);
            return Ok(());
        }
        let at = (splitmix64(random) % self.seen) as usize;
        if at < self.most {
            self.rows[at * self.d..(at + 1) * self.d].copy_from_slice(row);
        }
        Ok(())
    }
}

/// The number of lists for so many entries: near the optimum of ranking centroids against reading codes.
fn lists_for(entries: u64) -> usize {
    if entries < SMALL {
        1
    } else {
        (2.5 * (entries as f64).sqrt()).round() as usize
    }
}

impl<S: PageStore> Build<S> {
    /// Starts a build into an empty store.
    ///
    /// `memory_bytes` bounds what the build keeps in memory (at least 1 MB is used); `threads` is the number of threads
    /// that cluster and encode, the calling one among them. No other thread calls the store or the progress.
    pub fn new(
        store: S,
        options: IndexOptions,
        memory_bytes: usize,
        threads: usize,
        spools: SpoolFactory,
        progress: Progress,
    ) -> Result<Self, IndexError> {
        check_options(&options)?;
        let layout = Layout::new(&options);
        let d = layout.dimensions;
        let memory = memory_bytes.max(MIN_MEMORY);
        let most = (memory / 4 / (4 * d)).clamp(32, MAX_SAMPLE);
        Ok(Build {
            store,
            layout,
            memory,
            threads: threads.max(1),
            spools,
            progress,
            entries: Records::new(RECORD_HEADER + 4 * d, memory / 2),
            sample: Reservoir {
                d,
                most,
                seen: 0,
                rows: Vec::new(),
            },
            queries: Vec::new(),
            random: 0x5EED_0F51_7100_0001,
            rows: 0,
            skipped: 0,
            last: None,
            direction: Vec::new(),
            rounded: Vec::new(),
            record: Vec::new(),
            options,
        })
    }

    /// Takes one entry in. Entries of one row follow one another.
    ///
    /// Fails on a vector of another number of dimensions, NaN and infinity; zero vectors under cosine are left out.
    pub fn add(&mut self, entry: Entry<'_>) -> Result<(), IndexError> {
        check_entry(&entry, &self.layout, self.options.element)?;
        let mut vector = entry.vector;
        if self.options.element == Element::F16 {
            self.rounded.clear();
            self.rounded
                .extend(entry.vector.iter().map(|&x| half::f16::from_f32(x).to_f32()));
            vector = &self.rounded;
        }
        if prepare(vector, self.options.metric, &mut self.direction).is_none() {
            self.skipped += 1;
            return Ok(());
        }
        let number = self.entries.len();
        let new_row = self.last.replace(entry.tid) != Some(entry.tid);
        self.rows += u64::from(new_row);
        let marked = Entry {
            ordinal: entry.ordinal | if new_row { FIRST } else { 0 },
            vector,
            ..entry
        };
        put_record(&marked, Element::F32, &mut self.record)?;
        self.entries.push(&self.record, &mut self.spools)?;
        self.sample.show(&self.direction, &mut self.random)?;
        self.draw_query(&entry, number);
        if number.is_multiple_of(CHECK_EVERY) {
            self.store.check_cancel()?;
            (self.progress)(Phase::Loading, number, 0);
        }
        Ok(())
    }

    /// Keeps a uniform sample of entries as queries for the calibration.
    fn draw_query(&mut self, entry: &Entry<'_>, number: u64) {
        let most = QUERIES.min(self.memory / 16 / (4 * self.layout.dimensions)).max(8);
        let at = if self.queries.len() < most {
            self.queries.len()
        } else {
            (splitmix64(&mut self.random) % (number + 1)) as usize
        };
        if at < most {
            let sample = Sample {
                vector: self.direction.clone(),
                tid: entry.tid,
                ordinal: entry.ordinal,
                number,
            };
            if at == self.queries.len() {
                self.queries.push(sample)
            } else {
                self.queries[at] = sample
            }
        }
    }

    /// Replaces [`IndexOptions::extra`]: what is known only at the end of the build.
    pub fn set_extra(&mut self, extra: Vec<u8>) {
        self.options.extra = extra;
    }

    /// Clusters, writes and calibrates.
    pub fn finish(mut self) -> Result<BuildStats, IndexError> {
        let d = self.layout.dimensions;
        let n = self.entries.len();
        let centroids = self.centroids(n)?;
        let lists = centroids.len() / d;
        let mut stats = BuildStats {
            entries: n,
            rows: self.rows,
            skipped: self.skipped,
            lists: lists as u32,
            ..BuildStats::default()
        };
        let seed = splitmix64(&mut self.random);
        let rotation = Rotation::new(d, seed);
        let origin = self.take_origin(&rotation);
        let stored = stored_centroids(&centroids, d, &rotation, &origin)?;
        let queries = if lists > 1 {
            std::mem::take(&mut self.queries)
        } else {
            Vec::new()
        };
        let mut truth = Truth::new(queries, d, self.options.metric)?;
        let (owners, counts) = self.assign(&centroids, &mut truth)?;
        let mut meta = Meta {
            options: self.options,
            entries: n,
            rows: self.rows,
            lists: lists as u32,
            probes: lists as u32,
            slack: 0.0,
            curve: Curve::default(),
            seed,
            centroids: 0,
            origin,
        };
        let mut writer = Writer {
            store: &self.store,
            layout: self.layout,
            memory: self.memory / 4,
            threads: self.threads,
            spools: &mut self.spools,
            progress: &mut self.progress,
            rotation: &rotation,
            centroids: &stored,
        };
        writer.write(&mut meta, self.entries, owners, &counts)?;
        self.store.finish_bulk()?;
        stats.recall = truth.calibrate(&self.store, &mut meta)?;
        if lists > 1 {
            meta.update(&self.store)?;
        }
        stats.probes = meta.probes;
        stats.pages = self.store.blocks()?;
        Ok(stats)
    }

    /// The mean of the sample, rotated: what codes are relative to. Lets go of the sample.
    fn take_origin(&mut self, rotation: &Rotation) -> Vec<f32> {
        let mean = mean(&self.sample.rows, self.layout.dimensions);
        self.sample.rows = Vec::new();
        let mut origin = Vec::new();
        rotation.apply(&mean, &mut origin);
        if origin.iter().any(|x| !x.is_finite()) {
            // Vectors at the end of f32's range: the origin only sharpens the codes, so it may as well be zero.
            origin.fill(0.0);
        }
        origin
    }

    /// Centroids in the original space, row-major.
    fn centroids(&mut self, n: u64) -> Result<Vec<f32>, IndexError> {
        let d = self.layout.dimensions;
        let sampled = self.sample.rows.len() / d;
        let wanted = match self.options.lists {
            0 => lists_for(n).min(sampled / 4),
            lists => (lists as usize).min(sampled),
        };
        // Centroids are kept as floats, packed, and decoded while the index is written.
        let fits = self.memory / 4 / (12 * d.max(self.layout.padded));
        let lists = wanted.min(fits).clamp(1, IndexOptions::MAX_LISTS as usize);
        let used = sampled.min(lists * SAMPLE).max(sampled.min(1000));
        let sample = &self.sample.rows[..used * d];
        let (store, progress) = (&self.store, &mut self.progress);
        progress(Phase::Clustering, 0, lists as u64);
        cluster(sample, d, lists, self.threads, self.random, &mut |done, total| {
            store.check_cancel()?;
            progress(Phase::Clustering, done, total);
            Ok(())
        })
    }

    /// The list of every entry in the order of arrival, and what lives in each list.
    fn assign(&mut self, centroids: &[f32], truth: &mut Truth) -> Result<(Records, Vec<Counts>), IndexError> {
        let d = self.layout.dimensions;
        let n = self.entries.len();
        let panels = Panels::new(centroids, d).map_err(full)?;
        let mut counts = filled(Counts::default(), panels.len())?;
        let mut owners = Records::new(4, self.memory / 8);
        let size = RECORD_HEADER + 4 * d;
        let batch = (self.memory / 32 / size).clamp(16, 4096);
        let (mut bytes, mut rows, mut done) = (Vec::new(), Vec::new(), 0);
        let mut direction = Vec::new();
        self.entries.rewind()?;
        loop {
            self.entries.read(batch, &mut bytes)?;
            if bytes.is_empty() {
                return Ok((owners, counts));
            }
            rows.clear();
            reserve(&mut rows, bytes.len() / size * d)?;
            for record in bytes.chunks_exact(size) {
                let vector = record_vector(record);
                if prepare(&vector, self.options.metric, &mut direction).is_some() {
                    rows.extend_from_slice(&direction);
                }
            }
            let mut owner = filled((0u32, 0.0f32), bytes.len() / size)?;
            let store = &self.store;
            assign(&panels, &rows, d, self.threads, &mut owner, &mut || {
                store.check_cancel()
            })?;
            let name = |i: usize| {
                let record = &bytes[i * size..];
                (u64_at(record, 0), u32_at(record, 16) & !FIRST)
            };
            truth.show(&rows, d, &owner, done, &name)?;
            for ((list, _), record) in owner.iter().zip(bytes.chunks_exact(size)) {
                counts[*list as usize].add(u32_at(record, 16));
                owners.push(&list.to_le_bytes(), &mut self.spools)?;
            }
            done += owner.len() as u64;
            (self.progress)(Phase::Assigning, done, n);
        }
    }
}

/// Centroids as their pages hold them: rotated, less the origin.
fn stored_centroids(
    centroids: &[f32],
    d: usize,
    rotation: &Rotation,
    origin: &[f32],
) -> Result<Vec<Centroid>, IndexError> {
    // Each of them holds its components once in bytes and once decoded.
    room_for(centroids.len() * 5).map_err(full)?;
    let mut rotated = Vec::new();
    let stored = centroids.chunks_exact(d).map(|centroid| {
        rotation.apply(centroid, &mut rotated);
        rotated.iter_mut().zip(origin).for_each(|(x, o)| *x -= o);
        Centroid::new(&rotated)
    });
    collected(stored)
}

fn mean(rows: &[f32], d: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; d];
    for row in rows.chunks_exact(d) {
        sums.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
    }
    let n = (rows.len() / d).max(1) as f64;
    sums.iter().map(|s| (s / n) as f32).collect()
}
