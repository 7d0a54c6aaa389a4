//! Inserting into a built index.
//!
//! An entry goes to the list with the nearest centroid. Its record is written to the first of the list's open vector
//! pages (or to pages of its own, in pieces), its code to the first free lane from the list's cursor on; a new page is
//! taken from the store's free pages or added at the end.
//!
//! Locks: head of the list, then another code page of it, then a vector page, then pages that are new; vacuum keeps the
//! same order. The head is locked for writing by every insert into its list, so that what it holds about the list changes
//! under one lock; lists do not wait for one another. Free pages are taken without waiting, as two backends may be
//! after the same one. Pieces become durable before the lane that points to them: a crash between leaves pages that
//! nothing uses until REINDEX.

use super::IndexError;
use super::decide::decide;
use super::lists::nearest;
use super::meta::Meta;
use super::page::{
    CURSOR, FIRST, HEAD, Kind, LIST, Layout, NEXT, NEXT_OPEN, NONE, OPEN_VECTORS, PIECE_SIZE, Reader, RecordPtr,
    corrupted, expect_kind, is_free, is_kind, is_open, put_u32, set_open, u32_at, write_piece,
};
use super::rabitq::{encode, lane, put};
use super::store::{Block, PageBytes, PageChange, PageStore};
use super::types::{Entry, IndexOptions};
use super::vector::{check, check_entry, prepare, put_record};
use crate::compute::vectors::rotation::Rotation;

/// Puts all entries of one row into their nearest lists.
///
/// Fails on a vector of another number of dimensions, NaN and infinity before anything is written. Zero vectors under
/// cosine are left out.
pub fn insert<S: PageStore>(store: &S, entries: &[Entry<'_>]) -> Result<(), IndexError> {
    insert_from(store, entries, 0, &mut || ())
}

/// Like [`insert`], without the first `from` entries, which an earlier call has put in; `placed` is called for each entry
/// as soon as it is in. So a call that failed half way can be repeated without anything coming in twice.
pub fn insert_from<S: PageStore>(
    store: &S,
    entries: &[Entry<'_>],
    from: usize,
    placed: &mut dyn FnMut(),
) -> Result<(), IndexError> {
    let Some(first) = entries.first() else {
        return Ok(());
    };
    let meta = decided(store, first.vector)?;
    let layout = Layout::new(&meta.options);
    for entry in entries {
        check_entry(entry, &layout, meta.options.element)?;
    }
    let mut inserter = Inserter {
        store,
        rotation: Rotation::new(layout.dimensions, meta.seed),
        reader: Reader::new(store.clone())?,
        meta,
        layout,
        rotated: Vec::new(),
        residual: Vec::new(),
        record: Vec::new(),
    };
    let mut direction = Vec::new();
    let mut row = None;
    for (number, entry) in entries.iter().enumerate() {
        store.check_cancel()?;
        if prepare(entry.vector, inserter.meta.options.metric, &mut direction).is_none() {
            if number >= from {
                placed();
            }
            continue;
        }
        let first = if row.replace(entry.tid) == Some(entry.tid) {
            0
        } else {
            FIRST
        };
        if number >= from {
            inserter.insert(entry, entry.ordinal | first, &direction)?;
            placed();
        }
    }
    Ok(())
}

/// The meta page of an index, whose dimensions are the first vector's where they were open so far.
fn decided<S: PageStore>(store: &S, first: &[f32]) -> Result<Meta, IndexError> {
    let meta = Meta::open(store)?;
    if meta.is_decided() {
        return Ok(meta);
    }
    check(first, first.len())?;
    let options = IndexOptions {
        dimensions: first.len() as u32,
        ..meta.options
    };
    decide(store, options)?;
    Meta::open(store)
}

/// Puts entries into their lists, with memory that is used again.
struct Inserter<'a, S: PageStore> {
    store: &'a S,
    meta: Meta,
    layout: Layout,
    reader: Reader<S>,
    rotation: Rotation,
    rotated: Vec<f32>,
    residual: Vec<f32>,
    record: Vec<u8>,
}

impl<S: PageStore> Inserter<'_, S> {
    /// Puts an entry of a prepared direction into its nearest list.
    fn insert(&mut self, entry: &Entry<'_>, ordinal: u32, direction: &[f32]) -> Result<(), IndexError> {
        let (store, layout, options) = (self.store, &self.layout, &self.meta.options);
        self.rotation.apply(direction, &mut self.rotated);
        self.rotated
            .iter_mut()
            .zip(&self.meta.origin)
            .for_each(|(x, o)| *x -= o);
        let (head, list, centroid) = nearest(&mut self.reader, &self.meta, layout, &self.rotated)?;
        self.reader.check(head)?;
        let factors = encode(options.metric, &self.rotated, &centroid, &mut self.residual);
        put_record(entry, options.element, &mut self.record)?;
        let pieces = if layout.pieces > 0 {
            write_pieces(store, entry, &self.record)?
        } else {
            NONE
        };
        let new = NewEntry {
            list,
            head,
            pieces,
            ordinal,
            record: &self.record,
        };
        let residual = &self.residual;
        place(store, &mut self.reader, layout, &new, &mut |page, at, place| {
            put(layout, page, at, &lane(factors, entry.tid, ordinal, place), residual);
        })
    }
}

struct NewEntry<'a> {
    list: u32,
    head: Block,
    /// First piece of a record that was written already.
    pieces: Block,
    /// With [`FIRST`].
    ordinal: u32,
    record: &'a [u8],
}

/// A page for new content: a free one if `reuse`, else a new one. `None`: the free one was taken; try anew.
fn new_block<S: PageStore>(store: &S, change: &mut S::Change, reuse: bool) -> Result<Option<Block>, IndexError> {
    if reuse && let Some(block) = store.take_free()? {
        if block == NONE || block >= store.blocks()? {
            return Ok(None);
        }
        return match change.try_renew(block)? {
            Some(page) if is_free(page) => Ok(Some(block)),
            _ => Ok(None),
        };
    }
    Ok(Some(change.extend()?.0))
}

/// Writes a record in pieces, the last first; gives the first one's block.
fn write_pieces<S: PageStore>(store: &S, entry: &Entry<'_>, record: &[u8]) -> Result<Block, IndexError> {
    let mut next = NONE;
    for (number, bytes) in record.chunks(PIECE_SIZE).enumerate().rev() {
        let mut reuse = true;
        next = loop {
            let mut change = store.change()?;
            match new_block(store, &mut change, reuse)? {
                Some(block) => {
                    write_piece(
                        change.page(block)?,
                        next,
                        entry.tid,
                        entry.ordinal,
                        number as u16,
                        bytes,
                    );
                    change.commit()?;
                    break block;
                }
                None => reuse = false,
            }
        };
    }
    Ok(next)
}

/// What one attempt to place an entry came to.
enum Attempt {
    Done,
    /// The cursor moved on.
    Moved,
    /// A free page was not free: add one instead.
    NotFree,
}

fn place<S: PageStore>(
    store: &S,
    reader: &mut Reader<S>,
    layout: &Layout,
    new: &NewEntry<'_>,
    fill: &mut dyn FnMut(&mut PageBytes, usize, RecordPtr),
) -> Result<(), IndexError> {
    let mut reuse = true;
    let mut tries = 0u32;
    loop {
        store.check_cancel()?;
        match attempt(store, reader, layout, new, reuse, fill)? {
            Attempt::Done => return Ok(()),
            Attempt::Moved => {
                tries += 1;
                if tries > reader.blocks() {
                    reader.check(tries)?;
                }
            }
            Attempt::NotFree => reuse = false,
        }
    }
}

impl NewEntry<'_> {
    /// Fails for a page that is not one of the entry's list.
    fn check_page(&self, page: &PageBytes, block: Block) -> Result<(), IndexError> {
        expect_kind(page, block, Kind::Codes)?;
        if u32_at(page, LIST) != self.list || u32_at(page, HEAD) != self.head {
            return Err(corrupted(block, format!("not a page of list {}", self.list)));
        }
        Ok(())
    }
}

fn attempt<S: PageStore>(
    store: &S,
    reader: &mut Reader<S>,
    layout: &Layout,
    new: &NewEntry<'_>,
    reuse: bool,
    fill: &mut dyn FnMut(&mut PageBytes, usize, RecordPtr),
) -> Result<Attempt, IndexError> {
    let NewEntry { list, head, .. } = *new;
    let mut change = store.change()?;
    let page = change.page(head)?;
    new.check_page(page, head)?;
    let cursor = match u32_at(page, CURSOR) {
        NONE => head,
        block => block,
    };
    let open = u32_at(page, OPEN_VECTORS);
    reader.check(cursor)?;
    let page = change.page(cursor)?;
    new.check_page(page, cursor)?;
    let (mut free, next) = (layout.free_lane(page), u32_at(page, NEXT));
    let mut target = cursor;
    if free.is_none() && next != NONE {
        put_u32(change.page(head)?, CURSOR, next);
        change.commit()?;
        return Ok(Attempt::Moved);
    }
    // A vector page before a new code page: pages that exist come before pages that are new.
    let place = if layout.pieces > 0 {
        RecordPtr {
            block: new.pieces,
            slot: 0,
        }
    } else {
        match place_record(store, &mut change, reader, layout, new, open, reuse)? {
            Some(place) => place,
            None => return Ok(Attempt::NotFree),
        }
    };
    if free.is_none() {
        let Some(block) = new_block(store, &mut change, reuse)? else {
            return Ok(Attempt::NotFree);
        };
        layout.begin_codes(change.page(block)?, list, head);
        put_u32(change.page(cursor)?, NEXT, block);
        put_u32(change.page(head)?, CURSOR, block);
        target = block;
        free = Some(0);
    }
    let page = change.page(target)?;
    fill(page, free.unwrap_or(0), place);
    let page = change.page(head)?;
    let mut counts = layout.counts(page);
    counts.add(new.ordinal);
    layout.put_counts(page, counts);
    change.commit()?;
    Ok(Attempt::Done)
}

/// Writes the record into an open vector page of the list, or a new one. `None`: the free page was not free.
fn place_record<S: PageStore>(
    store: &S,
    change: &mut S::Change,
    reader: &mut Reader<S>,
    layout: &Layout,
    new: &NewEntry<'_>,
    open: Block,
    reuse: bool,
) -> Result<Option<RecordPtr>, IndexError> {
    let mut usable = false;
    if open != NONE {
        reader.check(open)?;
        let page = change.page(open)?;
        usable = is_kind(page, Kind::Vectors) && is_open(page) && layout.free_slot(page).is_some();
        if !usable {
            return Err(corrupted(open, format!("not an open vector page of list {}", new.list)));
        }
    }
    let block = if usable {
        open
    } else {
        let Some(block) = new_block(store, change, reuse)? else {
            return Ok(None);
        };
        let page = change.page(block)?;
        layout.begin_vectors(page);
        set_open(page, true);
        put_u32(change.page(new.head)?, OPEN_VECTORS, block);
        block
    };
    let page = change.page(block)?;
    let Some(slot) = layout.free_slot(page) else {
        return Err(corrupted(block, "no free slot"));
    };
    layout.record_mut(page, slot).copy_from_slice(new.record);
    layout.set_used(page, slot, true);
    if layout.free_slot(page).is_none() {
        let next = u32_at(page, NEXT_OPEN);
        set_open(page, false);
        put_u32(page, NEXT_OPEN, NONE);
        put_u32(change.page(new.head)?, OPEN_VECTORS, next);
    }
    Ok(Some(RecordPtr { block, slot }))
}
