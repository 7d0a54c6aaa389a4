//! The exact walk: every vector is compared, so that order and completeness rest on no bound.
//!
//! A pass reads all lists and keeps the nearest entries that come after the last one given out, as many as the scan's
//! memory holds; when they have come out and there were more, the next pass follows. What comes out is in the order of
//! (distance, tid, ordinal), whatever memory there is and whatever the lists and codes are like.

use super::IndexError;
use super::memory_limit::{reserve, with_room};
use super::page::{FIRST, HEAD, Kind, LIST, NEXT, NONE, RecordPtr, corrupted, expect_kind, u32_at};
use super::scan::{Scan, Waiting};
use super::store::PageStore;
use std::cmp::Ordering;

/// Where an exact walk is.
#[derive(Default)]
pub(super) struct Walk {
    /// What the last pass kept, the nearest last.
    ready: Vec<Waiting>,
    /// What came out last.
    after: Option<Waiting>,
    /// There is nothing beyond what is ready.
    complete: bool,
}

/// The nearest entries that were shown, at most `room` of them.
struct Nearest {
    room: usize,
    kept: Vec<Waiting>,
    /// The farthest that was kept when entries were dropped.
    limit: Option<Waiting>,
}

impl Nearest {
    fn show(&mut self, entry: Waiting) -> Result<(), IndexError> {
        if self
            .limit
            .as_ref()
            .is_some_and(|limit| entry.cmp(limit) == Ordering::Less)
        {
            return Ok(());
        }
        reserve(&mut self.kept, 1)?;
        self.kept.push(entry);
        if self.kept.len() >= 2 * self.room {
            self.cut();
        }
        Ok(())
    }

    fn cut(&mut self) {
        if self.kept.len() > self.room {
            self.kept.select_nth_unstable_by(self.room - 1, |a, b| b.cmp(a));
            self.kept.truncate(self.room);
            self.limit = self.kept.last().copied();
        }
    }
}

impl<S: PageStore> Scan<S> {
    /// The next hit of an exact walk.
    pub(super) fn next_exactly(&mut self) -> Result<Option<Waiting>, IndexError> {
        loop {
            self.returned.as_mut().map_or(Ok(()), |returned| reserve(returned, 1))?;
            if let Some(next) = self.walk.as_mut().and_then(|walk| walk.ready.pop()) {
                if let Some(walk) = self.walk.as_mut() {
                    walk.after = Some(next);
                }
                let first = self
                    .returned
                    .as_mut()
                    .is_none_or(|returned| returned.insert(next.hit.tid));
                if first {
                    return Ok(Some(next));
                }
                continue;
            }
            if self.walk.as_ref().is_none_or(|walk| walk.complete) {
                return Ok(None);
            }
            self.pass()?;
        }
    }

    /// Reads all lists for what comes after the last hit.
    fn pass(&mut self) -> Result<(), IndexError> {
        let after = self.walk.as_ref().and_then(|walk| walk.after);
        let mut nearest = Nearest {
            room: self.held.div_ceil(2),
            kept: Vec::new(),
            limit: None,
        };
        let mut lanes = with_room(self.layout.lanes)?;
        for position in 0..self.lists.len() {
            let mut block = self.lists[position].head;
            let mut pages = 0u32;
            while block != NONE {
                self.reader.store.check_cancel()?;
                pages += 1;
                if pages > self.reader.blocks() {
                    self.reader.check(pages)?;
                }
                block = self.lanes_of(position, block, &mut lanes)?;
                for &(place, tid, ordinal) in &lanes {
                    if self.returned.as_ref().is_some_and(|returned| returned.contains(&tid)) {
                        continue;
                    }
                    let found = self.exact.fetch(&mut self.reader, &self.layout, place, tid, ordinal)?;
                    let Some((hit, exactly)) = found else { continue };
                    let bound = match exactly.bound.is_nan() {
                        true => f32::NEG_INFINITY,
                        false => exactly.bound,
                    };
                    let entry = Waiting { bound, hit, place };
                    if after.as_ref().is_none_or(|after| entry.cmp(after) == Ordering::Less) {
                        nearest.show(entry)?;
                    }
                }
            }
        }
        nearest.cut();
        // The heap's order: the nearest is the greatest.
        nearest.kept.sort_unstable();
        self.walk = Some(Walk {
            ready: nearest.kept,
            after,
            complete: nearest.limit.is_none(),
        });
        Ok(())
    }

    /// The live lanes of a page of a list, and the page after it.
    fn lanes_of(
        &mut self,
        position: usize,
        block: u32,
        lanes: &mut Vec<(RecordPtr, u64, u32)>,
    ) -> Result<u32, IndexError> {
        let (head, list) = (self.lists[position].head, self.lists[position].list);
        let page = self.reader.read(block)?;
        expect_kind(&page, block, Kind::Codes)?;
        if u32_at(&*page, LIST) != list || u32_at(&*page, HEAD) != head {
            return Err(corrupted(block, format!("not a page of list {list}")));
        }
        lanes.clear();
        self.layout.each_live(&page, |lane| {
            let value = self.layout.lane(&page, lane);
            lanes.push((value.place, value.tid, value.ordinal & !FIRST));
        });
        Ok(u32_at(&*page, NEXT))
    }
}
