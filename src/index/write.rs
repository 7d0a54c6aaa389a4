//! Writing the pages of a build, front to back: meta data, centroids, vectors, codes.
//!
//! All block numbers follow from the number of entries of each list, so pages are appended in order and none is
//! written twice. Entries are needed in the order of their lists: if they lie in memory, through a permutation;
//! otherwise they are dealt to scratch files that each hold a run of places short enough to be put in order in memory.
//! Code pages, a small part of the index, wait in a scratch file until the vectors are written.

use super::IndexError;
use super::lists::{centroid_pages, put_centroid};
use super::memory_limit::{filled, reserve_exact, with_room};
use super::meta::{Meta, pages_of_meta};
use super::page::{
    Counts, Layout, NEXT, NONE, PIECE_SIZE, RECORD_HEADER, RecordPtr, corrupted, new_page, put_u32, u32_at, u64_at,
    write_piece,
};
use super::rabitq::{Centroid, Factors, encode, lane, put};
use super::spool::{Records, SpoolFactory};
use super::store::{Block, PAGE_SIZE, PageBytes, PageStore};
use super::types::{Element, Metric, Phase, Progress};
use super::vector::{prepare, record_vector};
use crate::compute::cpu::parallel::parallel_chunks;
use crate::compute::vectors::rotation::Rotation;

/// Scratch files that are written at the same time.
const FILES: usize = 64;
/// Entries that are encoded between two cancel checks.
const BATCH: usize = 512;

pub struct Writer<'a, S: PageStore> {
    pub store: &'a S,
    pub layout: Layout,
    pub memory: usize,
    pub threads: usize,
    pub spools: &'a mut SpoolFactory,
    pub progress: &'a mut Progress,
    pub rotation: &'a Rotation,
    pub centroids: &'a [Centroid],
}

/// An entry with its code, ready to be laid out.
#[derive(Default)]
struct Encoded {
    list: u32,
    /// Where the record starts in the batch's bytes.
    at: usize,
    factors: Factors,
    residual: Vec<f32>,
    direction: Vec<f32>,
    rotated: Vec<f32>,
}

/// The pages that are being filled.
struct Output {
    vectors: Box<PageBytes>,
    /// Block of the vector page being filled, and slots used in it.
    vector_block: Block,
    slot: u16,
    codes: Records,
    code: Box<PageBytes>,
    code_block: Block,
    lane: usize,
    list: usize,
    record: Vec<u8>,
}

/// Bytes before a record in a scratch file: its place, and its list.
const TAG: usize = 12;

/// What is known of the lists before their pages are written.
#[derive(Clone, Copy)]
struct Lists<'a> {
    counts: &'a [Counts],
    heads: &'a [Block],
}

impl Lists<'_> {
    /// Makes `page` the empty head of a list. Behind the last list it is a page that is never put away.
    fn begin(&self, layout: &Layout, page: &mut PageBytes, list: usize) {
        let head = self.heads.get(list).copied().unwrap_or(NONE);
        layout.begin_codes(page, list as u32, head);
        layout.put_counts(page, self.counts.get(list).copied().unwrap_or_default());
    }
}

fn to_block(number: u64) -> Result<Block, IndexError> {
    Block::try_from(number).map_err(|_| IndexError::Store("the index would have more than 2^32 pages".into()))
}

impl<S: PageStore> Writer<'_, S> {
    /// Writes everything; sets `meta.centroids`.
    pub fn write(
        &mut self,
        meta: &mut Meta,
        entries: Records,
        owners: Records,
        counts: &[Counts],
    ) -> Result<(), IndexError> {
        let n = entries.len();
        let first = self.store.blocks()?;
        if first != 0 {
            return Err(corrupted(first, "a build needs an empty index"));
        }
        let layout = self.layout;
        let centroids_at = pages_of_meta(layout.padded, &meta.options);
        let vectors_at = (centroids_at + layout.pages_of_centroids(counts.len())) as u64;
        let vector_pages = if layout.slots > 0 {
            n.div_ceil(layout.slots as u64)
        } else {
            n * layout.pieces as u64
        };
        let codes_at = vectors_at + vector_pages;
        let heads = self.heads(codes_at, counts)?;
        meta.centroids = centroids_at as Block;
        self.write_head(meta, &heads)?;
        let mut output = Output {
            vectors: Box::new(new_page()),
            vector_block: to_block(vectors_at)?,
            slot: 0,
            codes: Records::new(PAGE_SIZE, self.memory / 4),
            code: Box::new(new_page()),
            code_block: to_block(codes_at)?,
            lane: 0,
            list: 0,
            record: Vec::new(),
        };
        layout.begin_vectors(&mut output.vectors);
        let lists = Lists { counts, heads: &heads };
        lists.begin(&layout, &mut output.code, 0);
        self.write_entries(meta, entries, owners, lists, &mut output)?;
        if output.slot > 0 {
            self.append(output.vector_block, &output.vectors)?;
        }
        self.move_to_list(&mut output, counts.len(), lists)?;
        self.append_codes(output.codes, to_block(codes_at)?)
    }

    /// The first code page of each list, the first of all at `codes_at`.
    fn heads(&self, codes_at: u64, counts: &[Counts]) -> Result<Vec<Block>, IndexError> {
        let mut heads = with_room(counts.len())?;
        let mut next = codes_at;
        for count in counts {
            heads.push(to_block(next)?);
            next += u64::from(count.entries).div_ceil(self.layout.lanes as u64).max(1);
        }
        to_block(next)?;
        Ok(heads)
    }

    /// Appends the pages of the meta data and of the centroids.
    fn write_head(&self, meta: &Meta, heads: &[Block]) -> Result<(), IndexError> {
        for (i, page) in meta.to_pages().iter().enumerate() {
            self.append(i as Block, page)?;
        }
        let mut records = Vec::new();
        reserve_exact(&mut records, heads.len() * self.layout.centroid())?;
        for (centroid, &head) in self.centroids.iter().zip(heads) {
            put_centroid(centroid, head, &mut records);
        }
        for (i, page) in centroid_pages(&self.layout, &records).enumerate() {
            self.append(meta.centroids + i as Block, &page)?;
        }
        Ok(())
    }

    /// Appends the code pages, which were kept until the vectors were written.
    fn append_codes(&self, mut codes: Records, mut block: Block) -> Result<(), IndexError> {
        codes.rewind()?;
        let mut bytes = Vec::new();
        loop {
            codes.read(8, &mut bytes)?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.store.check_cancel()?;
            for chunk in bytes.chunks_exact(PAGE_SIZE) {
                let mut page = new_page();
                page.copy_from_slice(chunk);
                self.append(block, &page)?;
                block += 1;
            }
        }
    }

    fn append(&self, expected: Block, page: &PageBytes) -> Result<(), IndexError> {
        let block = self.store.append_bulk(page)?;
        if block == expected {
            Ok(())
        } else {
            Err(corrupted(block, format!("appended where {expected} was due")))
        }
    }

    /// Brings the entries into the order of their lists and lays them out.
    fn write_entries(
        &mut self,
        meta: &Meta,
        entries: Records,
        mut owners: Records,
        lists: Lists<'_>,
        output: &mut Output,
    ) -> Result<(), IndexError> {
        let mut starts = with_room(lists.counts.len())?;
        let mut sum = 0u64;
        for count in lists.counts {
            starts.push(sum);
            sum += u64::from(count.entries);
        }
        owners.rewind()?;
        match entries.in_memory() {
            Some(bytes) => self.write_from_memory(meta, bytes, owners, starts, lists, output),
            None => self.write_from_files(meta, entries, owners, starts, lists, output),
        }
    }

    /// Sorts entries that are all in memory; `next` is where each list's next entry goes.
    fn write_from_memory(
        &mut self,
        meta: &Meta,
        bytes: &[u8],
        mut owners: Records,
        mut next: Vec<u64>,
        lists: Lists<'_>,
        output: &mut Output,
    ) -> Result<(), IndexError> {
        let size = self.record_size();
        let n = bytes.len() / size;
        let mut owned = Vec::new();
        let mut order = filled((0u32, 0u32), n)?;
        owners.read(n, &mut owned)?;
        for (i, list) in owned.chunks_exact(4).enumerate() {
            let list = u32_at(list, 0);
            order[next[list as usize] as usize] = (i as u32, list);
            next[list as usize] += 1;
        }
        drop(owned);
        for (i, batch) in order.chunks(BATCH).enumerate() {
            let places = batch.iter().map(|&(entry, list)| (entry as usize * size, list));
            self.lay_out(meta, bytes, places, lists, output)?;
            (self.progress)(Phase::Writing, ((i * BATCH) + batch.len()) as u64, n as u64);
        }
        Ok(())
    }

    /// Sorts entries over scratch files, each with a run of them that fits the memory: as many runs at a time as there may
    /// be files.
    fn write_from_files(
        &mut self,
        meta: &Meta,
        mut entries: Records,
        mut owners: Records,
        starts: Vec<u64>,
        lists: Lists<'_>,
        output: &mut Output,
    ) -> Result<(), IndexError> {
        let n = entries.len() as usize;
        let run = (self.memory / (self.record_size() + TAG) / 2).max(1);
        let files = ((self.memory / 4) / (64 * 1024)).clamp(2, FILES);
        for first in (0..n.div_ceil(run)).step_by(files) {
            let low = (first * run) as u64;
            let runs = self.divide(&mut entries, &mut owners, starts.clone(), low, run, files)?;
            for (i, file) in runs.into_iter().enumerate() {
                let base = low + (i * run) as u64;
                let written = self.write_run(meta, file, run.min(n), lists, output)?;
                (self.progress)(Phase::Writing, (base + written as u64).min(n as u64), n as u64);
            }
        }
        Ok(())
    }

    /// Divides the entries whose places begin at `low` among `files` scratch files of `run` places each. A record there is
    /// preceded by its place and its list.
    fn divide(
        &mut self,
        entries: &mut Records,
        owners: &mut Records,
        mut next: Vec<u64>,
        low: u64,
        run: usize,
        files: usize,
    ) -> Result<Vec<Records>, IndexError> {
        let size = self.record_size();
        let high = low + (files * run) as u64;
        let mut runs: Vec<Records> = (0..files).map(|_| Records::new(size + TAG, 0)).collect();
        entries.rewind()?;
        owners.rewind()?;
        let (mut bytes, mut owned, mut tagged) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            self.store.check_cancel()?;
            let batch = (self.memory / 16 / size).clamp(1, 1024);
            entries.read(batch, &mut bytes)?;
            owners.read(batch, &mut owned)?;
            if bytes.is_empty() {
                return Ok(runs);
            }
            for (record, list) in bytes.chunks_exact(size).zip(owned.chunks_exact(4)) {
                let place = &mut next[u32_at(list, 0) as usize];
                if (low..high).contains(place) {
                    tagged.clear();
                    tagged.extend_from_slice(&place.to_le_bytes());
                    tagged.extend_from_slice(list);
                    tagged.extend_from_slice(record);
                    runs[(*place - low) as usize / run].push(&tagged, self.spools)?;
                }
                *place += 1;
            }
        }
    }

    /// Sorts one scratch file of at most `most` entries and lays them out; gives how many there were.
    fn write_run(
        &mut self,
        meta: &Meta,
        mut file: Records,
        most: usize,
        lists: Lists<'_>,
        output: &mut Output,
    ) -> Result<usize, IndexError> {
        let size = self.record_size() + TAG;
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read(most, &mut bytes)?;
        let mut order: Vec<(u64, usize)> = Vec::new();
        reserve_exact(&mut order, most)?;
        let records = bytes.chunks_exact(size).enumerate();
        order.extend(records.map(|(i, record)| (u64_at(record, 0), i * size)));
        order.sort_unstable();
        for batch in order.chunks(BATCH) {
            let places = batch.iter().map(|&(_, at)| (at + TAG, u32_at(&bytes, at + 8)));
            self.lay_out(meta, &bytes, places, lists, output)?;
        }
        Ok(order.len())
    }

    /// Bytes of an entry's record.
    fn record_size(&self) -> usize {
        RECORD_HEADER + 4 * self.layout.dimensions
    }

    /// Encodes a batch of records (their starts in `bytes`, and lists) on all threads, then writes them in order.
    fn lay_out(
        &mut self,
        meta: &Meta,
        bytes: &[u8],
        places: impl Iterator<Item = (usize, u32)>,
        lists: Lists<'_>,
        output: &mut Output,
    ) -> Result<(), IndexError> {
        self.store.check_cancel()?;
        let size = RECORD_HEADER + 4 * self.layout.dimensions;
        let mut batch: Vec<Encoded> = places
            .map(|(at, list)| Encoded {
                at,
                list,
                ..Encoded::default()
            })
            .collect();
        let (metric, origin, centroids, rotation) = (meta.options.metric, &meta.origin, self.centroids, self.rotation);
        parallel_chunks(self.threads, &mut batch, 32, |_, part| {
            for entry in part {
                let vector = record_vector(&bytes[entry.at..entry.at + size]);
                encode_entry(entry, &vector, metric, origin, centroids, rotation);
            }
        });
        for entry in &batch {
            self.move_to_list(output, entry.list as usize, lists)?;
            let place = self.write_vector(output, &bytes[entry.at..entry.at + size], meta.options.element)?;
            let record = &bytes[entry.at..entry.at + size];
            let (tid, ordinal) = (u64_at(record, 0), u32_at(record, 16));
            if output.lane == self.layout.lanes {
                let (list, head) = (output.list, lists.heads[output.list]);
                put_u32(&mut *output.code, NEXT, output.code_block + 1);
                self.end_code_page(output)?;
                self.layout.begin_codes(&mut output.code, list as u32, head);
            }
            let value = lane(entry.factors, tid, ordinal, place);
            put(&self.layout, &mut output.code, output.lane, &value, &entry.residual);
            output.lane += 1;
        }
        Ok(())
    }

    /// Ends the code pages of the current list, and of empty lists after it, until `list` is the current one.
    fn move_to_list(&mut self, output: &mut Output, list: usize, lists: Lists<'_>) -> Result<(), IndexError> {
        while output.list < list {
            output.list += 1;
            self.end_code_page(output)?;
            lists.begin(&self.layout, &mut output.code, output.list);
        }
        Ok(())
    }

    /// Puts the code page away; the next one is to begin.
    fn end_code_page(&mut self, output: &mut Output) -> Result<(), IndexError> {
        output.codes.push(&output.code[..], self.spools)?;
        output.code_block += 1;
        output.lane = 0;
        Ok(())
    }

    fn write_vector(&mut self, output: &mut Output, entry: &[u8], element: Element) -> Result<RecordPtr, IndexError> {
        let record = &mut output.record;
        record.clear();
        record.extend_from_slice(&entry[..RECORD_HEADER]);
        let ordinal = u32_at(entry, 16) & !super::page::FIRST;
        put_u32(record, 16, ordinal);
        match element {
            Element::F32 => record.extend_from_slice(&entry[RECORD_HEADER..]),
            Element::F16 => {
                let halves = record_vector(entry)
                    .into_iter()
                    .flat_map(|x| half::f16::from_f32(x).to_le_bytes());
                record.extend(halves);
            }
        }
        if self.layout.slots > 0 {
            let place = RecordPtr {
                block: output.vector_block,
                slot: output.slot,
            };
            self.layout
                .record_mut(&mut output.vectors, output.slot)
                .copy_from_slice(record);
            self.layout.set_used(&mut output.vectors, output.slot, true);
            output.slot += 1;
            if usize::from(output.slot) == self.layout.slots {
                self.append(output.vector_block, &output.vectors)?;
                self.layout.begin_vectors(&mut output.vectors);
                output.vector_block += 1;
                output.slot = 0;
            }
            return Ok(place);
        }
        let first = output.vector_block;
        let last = self.layout.pieces - 1;
        for (number, bytes) in output.record.chunks(PIECE_SIZE).enumerate() {
            let next = if number < last { output.vector_block + 1 } else { NONE };
            write_piece(
                &mut output.vectors,
                next,
                u64_at(entry, 0),
                ordinal,
                number as u16,
                bytes,
            );
            self.append(output.vector_block, &output.vectors)?;
            output.vector_block += 1;
        }
        Ok(RecordPtr { block: first, slot: 0 })
    }
}

fn encode_entry(
    entry: &mut Encoded,
    vector: &[f32],
    metric: Metric,
    origin: &[f32],
    centroids: &[Centroid],
    rotation: &Rotation,
) {
    // Zero vectors under cosine were left out when the entry was added.
    if prepare(vector, metric, &mut entry.direction).is_none() {
        entry.direction.extend_from_slice(vector);
    }
    rotation.apply(&entry.direction, &mut entry.rotated);
    entry.rotated.iter_mut().zip(origin).for_each(|(x, o)| *x -= o);
    if let Some(centroid) = centroids.get(entry.list as usize) {
        entry.factors = encode(metric, &entry.rotated, centroid, &mut entry.residual);
    }
}
