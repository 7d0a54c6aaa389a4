//! Removing dead entries and counting live ones.
//!
//! [`bulk_delete`] walks every list. A code page is read and its tids are judged with no lock held; only if one is dead is
//! the page changed, together with the vector pages of its dead lanes (a few at a time: a change holds four pages).
//! A vector page that is left empty becomes free, one that is left with free slots joins the list's chain of open pages,
//! where inserts into that list look first; the list's cursor goes back to its first page with a free lane. Code
//! pages stay with their list, so a scan that is between two of them never loses its way.
//!
//! Locks, in the order of `insert.rs`: head, code page, vector page. The server runs one vacuum an index at a time.

use super::IndexError;
use super::lists::heads;
use super::meta::Meta;
use super::page::{
    CURSOR, FIRST, HEAD, Kind, LIST, Lane, Layout, NEXT, NEXT_OPEN, NONE, OPEN_VECTORS, PIECE_NEXT, Reader, begin,
    corrupted, expect_kind, is_free, is_kind, is_open, put_u32, read_piece, set_open, u32_at,
};
use super::store::{Block, CONTENT_START, PageBytes, PageChange, PageStore};
use super::types::{Tid, VacuumStats};

/// Removes the entries whose tid is dead. `dead` is called without locks, once for every live entry.
///
/// `entries` and `rows` count what remains in the lists as they were read; `free_pages` counts the pages that this call
/// freed.
pub fn bulk_delete<S: PageStore>(store: &S, dead: &mut dyn FnMut(Tid) -> bool) -> Result<VacuumStats, IndexError> {
    let meta = Meta::open(store)?;
    if !meta.is_decided() {
        return Ok(VacuumStats {
            pages: store.blocks()?,
            ..VacuumStats::default()
        });
    }
    let layout = Layout::new(&meta.options);
    let mut reader = Reader::new(store.clone())?;
    let mut stats = VacuumStats::default();
    for (list, head) in heads(&mut reader, &meta, &layout)?.into_iter().enumerate() {
        let mut vacuum = ListVacuum {
            reader: &mut reader,
            layout: &layout,
            list: list as u32,
            head,
            stats: &mut stats,
        };
        vacuum.run(dead)?;
    }
    stats.pages = store.blocks()?;
    Ok(stats)
}

/// Counts live entries, rows and pages, and records every free page with the store (which may have forgotten them in a
/// crash). Changes the meta page where its counts are not these, and no other.
pub fn cleanup<S: PageStore>(store: &S) -> Result<VacuumStats, IndexError> {
    let mut meta = Meta::open(store)?;
    let layout = Layout::new(&meta.options);
    let mut stats = VacuumStats {
        pages: store.blocks()?,
        ..VacuumStats::default()
    };
    if !meta.is_decided() {
        return Ok(stats);
    }
    for block in meta.centroids..stats.pages {
        store.check_cancel()?;
        store.vacuum_delay();
        let page = store.read(block)?;
        let free = is_free(&page);
        if is_kind(&page, Kind::Codes) {
            layout.each_live(&page, |lane| {
                stats.entries += 1;
                stats.rows += u64::from(layout.lane(&page, lane).ordinal & FIRST != 0);
            });
        }
        drop(page);
        if free {
            stats.free_pages += 1;
            store.release(block)?;
        }
    }
    if (meta.entries, meta.rows) != (stats.entries, stats.rows) {
        (meta.entries, meta.rows) = (stats.entries, stats.rows);
        meta.update(store)?;
    }
    Ok(stats)
}

/// Entries and rows that live in the lists now: those of rows that died since the last vacuum are among them. Reads one
/// page a list.
pub fn count<S: PageStore>(store: &S) -> Result<(u64, u64), IndexError> {
    let meta = Meta::open(store)?;
    if !meta.is_decided() {
        return Ok((0, 0));
    }
    let layout = Layout::new(&meta.options);
    let mut reader = Reader::new(store.clone())?;
    let (mut entries, mut rows) = (0, 0);
    for head in heads(&mut reader, &meta, &layout)? {
        store.check_cancel()?;
        let page = reader.read(head)?;
        expect_kind(&page, head, Kind::Codes)?;
        let counts = layout.counts(&page);
        entries += u64::from(counts.entries);
        rows += u64::from(counts.rows);
    }
    Ok((entries, rows))
}

struct ListVacuum<'a, S: PageStore> {
    reader: &'a mut Reader<S>,
    layout: &'a Layout,
    list: u32,
    head: Block,
    stats: &'a mut VacuumStats,
}

impl<S: PageStore> ListVacuum<'_, S> {
    fn run(&mut self, dead: &mut dyn FnMut(Tid) -> bool) -> Result<(), IndexError> {
        let mut block = self.head;
        let mut first_free = None;
        let mut removed_any = false;
        let mut pages = 0u32;
        while block != NONE {
            pages += 1;
            if pages > self.reader.blocks() {
                self.reader.check(pages)?;
            }
            self.reader.store.check_cancel()?;
            self.reader.store.vacuum_delay();
            let page = self.reader.read(block)?;
            self.check(&page, block)?;
            let mut lanes: Vec<(usize, Lane)> = Vec::new();
            self.layout
                .each_live(&page, |lane| lanes.push((lane, self.layout.lane(&page, lane))));
            let next = u32_at(&*page, NEXT);
            drop(page);
            let held = lanes.len();
            let mut gone: Vec<(usize, Lane)> = Vec::new();
            let mut rows = 0;
            for (lane, value) in lanes {
                if dead(value.tid) {
                    gone.push((lane, value));
                } else {
                    rows += u64::from(value.ordinal & FIRST != 0);
                }
            }
            self.stats.entries += (held - gone.len()) as u64;
            self.stats.rows += rows;
            if first_free.is_none() && (held - gone.len() < self.layout.lanes) {
                first_free = Some(block);
            }
            if !gone.is_empty() {
                removed_any = true;
                self.stats.removed += gone.len() as u64;
                gone.sort_by_key(|(lane, value)| (value.place, *lane));
                self.remove(block, &gone)?;
            }
            block = next;
        }
        if removed_any && let Some(first) = first_free {
            self.reader.store.check_cancel()?;
            let mut change = self.reader.store.change()?;
            let page = change.page(self.head)?;
            self.check(page, self.head)?;
            put_u32(page, CURSOR, first);
            change.commit()?;
        }
        Ok(())
    }

    fn check(&self, page: &PageBytes, block: Block) -> Result<(), IndexError> {
        expect_kind(page, block, Kind::Codes)?;
        if u32_at(page, LIST) != self.list || u32_at(page, HEAD) != self.head {
            return Err(corrupted(block, format!("not a page of list {}", self.list)));
        }
        Ok(())
    }

    /// Frees the dead lanes of one code page and their vectors, one vector page a change.
    fn remove(&mut self, block: Block, gone: &[(usize, Lane)]) -> Result<(), IndexError> {
        for group in gone.chunk_by(|(_, a), (_, b)| self.layout.slots > 0 && a.place.block == b.place.block) {
            self.reader.store.check_cancel()?;
            let Some((_, first)) = group.first() else { continue };
            let vectors = first.place.block;
            self.reader.check(vectors)?;
            if vectors == NONE {
                return Err(corrupted(block, "a lane without a vector"));
            }
            let mut change = self.reader.store.change()?;
            let page = change.page(self.head)?;
            self.check(page, self.head)?;
            let mut counts = self.layout.counts(page);
            group.iter().for_each(|(_, value)| counts.remove(value.ordinal));
            self.layout.put_counts(page, counts);
            let page = change.page(block)?;
            self.check(page, block)?;
            for (lane, value) in group {
                self.layout.set_live(page, *lane, false);
                debug_assert_eq!(self.layout.lane(page, *lane).tid, value.tid);
            }
            if self.layout.slots > 0 {
                let freed = self.free_slots(&mut change, vectors, group)?;
                change.commit()?;
                if freed {
                    self.stats.free_pages += 1;
                    self.reader.store.release(vectors)?;
                }
            } else {
                change.commit()?;
                self.free_pieces(first)?;
            }
        }
        Ok(())
    }

    /// Frees the slots of a group of lanes; true if the page became free.
    fn free_slots(&self, change: &mut S::Change, vectors: Block, group: &[(usize, Lane)]) -> Result<bool, IndexError> {
        let open = u32_at(change.page(self.head)?, OPEN_VECTORS);
        let page = change.page(vectors)?;
        expect_kind(page, vectors, Kind::Vectors)?;
        for (_, value) in group {
            let slot = value.place.slot;
            // A slot that holds another entry is that entry's: the pointer was wrong, the lane is gone anyway.
            if self.layout.is_used(page, slot) && super::page::u64_at(self.layout.record(page, slot), 0) == value.tid {
                self.layout.set_used(page, slot, false);
            }
        }
        if is_open(page) {
            return Ok(false);
        }
        if self.layout.is_empty(page) {
            begin(page, Kind::Free, CONTENT_START + 2);
            return Ok(true);
        }
        set_open(page, true);
        put_u32(page, NEXT_OPEN, open);
        put_u32(change.page(self.head)?, OPEN_VECTORS, vectors);
        Ok(false)
    }

    /// Frees the pieces of a record that no lane points to any more.
    fn free_pieces(&mut self, lane: &Lane) -> Result<(), IndexError> {
        let mut block = lane.place.block;
        for number in 0..self.layout.pieces {
            if block == NONE {
                break;
            }
            self.reader.check(block)?;
            let mut change = self.reader.store.change()?;
            let page = change.page(block)?;
            if read_piece(page, lane.tid, lane.ordinal & !FIRST, number as u16).is_none() {
                break;
            }
            let next = u32_at(page, PIECE_NEXT);
            begin(page, Kind::Free, CONTENT_START + 2);
            change.commit()?;
            self.stats.free_pages += 1;
            self.reader.store.release(block)?;
            block = next;
        }
        Ok(())
    }
}
