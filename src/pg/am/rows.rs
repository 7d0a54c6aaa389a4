//! Where a value lies: the row of a heap page that a value of it points into.
//!
//! A function of SQL sees values alone. But a scan gives the values of a row as pointers into the page that it has pinned,
//! so the address of a value says whose it is, with certainty: the row, and by the column's own address the column. What
//! was copied on its way (by a sort, a hash table, a function) points elsewhere, and is nobody's.
//!
//! Locking: the page is pinned by whoever gave the value, so its rows do not move; whether other rows of it are visible is
//! asked under a share lock that is given back at once. The server evaluates expressions without a lock on a page.

use pgrx::pg_sys;

/// A row of a pinned page.
#[derive(Clone, Copy)]
pub struct Place {
    buffer: pg_sys::Buffer,
    block: pg_sys::BlockNumber,
    pub offset: pg_sys::OffsetNumber,
}

/// The buffer whose page holds an address.
fn buffer_of(address: usize) -> Option<pg_sys::Buffer> {
    let size = pg_sys::BLCKSZ as usize;
    // SAFETY: globals of the backend that the server sets before any statement; local buffers are an array of that length
    // whose entries are null until they are used.
    unsafe {
        let first = pg_sys::BufferBlocks as usize;
        let count = usize::try_from(pg_sys::NBuffers).unwrap_or(0);
        if first != 0 && (first..first + count * size).contains(&address) {
            return i32::try_from((address - first) / size + 1).ok();
        }
        if pg_sys::LocalBufferBlockPointers.is_null() {
            return None;
        }
        (0..pg_sys::NLocBuffer).find_map(|at| {
            let page = *pg_sys::LocalBufferBlockPointers.add(at as usize) as usize;
            (page != 0 && (page..page + size).contains(&address)).then_some(-at - 1)
        })
    }
}

/// Whether a table is stored as the server's own heap, whose pages are read here.
///
/// # Safety
/// `table` is open.
unsafe fn is_heap(table: pg_sys::Relation) -> bool {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::eq((*table).rd_tableam, pg_sys::GetHeapamTableAmRoutine()) }
}

/// The page of that table that holds an address: its buffer and number.
///
/// # Safety
/// `table` is open, and `address` is that of a value which the caller of a function gave.
unsafe fn page_of(table: pg_sys::Relation, address: usize) -> Option<(pg_sys::Buffer, pg_sys::BlockNumber)> {
    let buffer = buffer_of(address)?;
    // SAFETY: a value lies in the page, so whoever gave it holds a pin.
    unsafe {
        if !is_heap(table) {
            return None;
        }
        let (mut locator, mut fork, mut block) = (pg_sys::RelFileLocator::default(), 0, 0);
        pg_sys::BufferGetTag(buffer, &raw mut locator, &raw mut fork, &raw mut block);
        let own = (*table).rd_locator;
        let same = own.relNumber == locator.relNumber && own.spcOid == locator.spcOid && own.dbOid == locator.dbOid;
        (same && fork == pg_sys::ForkNumber::MAIN_FORKNUM).then_some((buffer, block))
    }
}

/// The last line pointer of a page; 0 where it has none.
///
/// # Safety
/// The page is pinned.
unsafe fn last(buffer: pg_sys::Buffer) -> pg_sys::OffsetNumber {
    // SAFETY: the caller's promise. Line pointers lie between the header and `pd_lower`.
    unsafe {
        let header = &*pg_sys::BufferGetPage(buffer).cast::<pg_sys::PageHeaderData>();
        let pointers =
            usize::from(header.pd_lower).saturating_sub(std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp));
        (pointers / size_of::<pg_sys::ItemIdData>()) as pg_sys::OffsetNumber
    }
}

/// The tuple at that place; `None` where the page has none there.
///
/// # Safety
/// The page is pinned and belongs to `table`.
unsafe fn tuple(table: pg_sys::Relation, place: Place) -> Option<pg_sys::HeapTupleData> {
    // SAFETY: the caller's promise; a line pointer of a normal item lies inside the page.
    unsafe {
        if place.offset == 0 || place.offset > last(place.buffer) {
            return None;
        }
        let page = pg_sys::BufferGetPage(place.buffer);
        let items = (*page.cast::<pg_sys::PageHeaderData>()).pd_linp.as_ptr();
        let item = items.add(usize::from(place.offset) - 1);
        if (*item).lp_flags() != pg_sys::LP_NORMAL {
            return None;
        }
        let mut tuple = pg_sys::HeapTupleData {
            t_len: (*item).lp_len(),
            t_data: page.add((*item).lp_off() as usize).cast(),
            t_tableOid: (*table).rd_id,
            ..Default::default()
        };
        tuple.t_self.ip_blkid.bi_hi = (place.block >> 16) as u16;
        tuple.t_self.ip_blkid.bi_lo = place.block as u16;
        tuple.t_self.ip_posid = place.offset;
        Some(tuple)
    }
}

/// A column of the row at that place, where it lies in the page; `None` for NULL.
///
/// # Safety
/// The page is pinned and belongs to `table`, which is open.
pub unsafe fn column(table: pg_sys::Relation, place: Place, number: i16) -> Option<pg_sys::Datum> {
    // SAFETY: the caller's promise; both arrays have as many places as the table has columns.
    unsafe {
        let mut tuple = tuple(table, place)?;
        let description = (*table).rd_att;
        let columns = (*description).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); columns], vec![true; columns]);
        pg_sys::heap_deform_tuple(&raw mut tuple, description, values.as_mut_ptr(), nulls.as_mut_ptr());
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        values.get(at).copied().filter(|_| nulls.get(at) == Some(&false))
    }
}

/// The row of `table` whose column `number` is that very value.
///
/// # Safety
/// `table` is open, and `value` is an argument of a call in progress.
pub unsafe fn find(table: pg_sys::Relation, number: i16, value: pg_sys::Datum) -> Option<Place> {
    let address = value.value();
    // SAFETY: the caller's promise; the page is pinned as long as the call lasts.
    unsafe {
        let (buffer, block) = page_of(table, address)?;
        let place = (1..=last(buffer))
            .map(|offset| Place { buffer, block, offset })
            .find(|place| {
                tuple(table, *place).is_some_and(|tuple| {
                    let start = tuple.t_data as usize;
                    (start..start + tuple.t_len as usize).contains(&address)
                })
            })?;
        (column(table, place, number)?.value() == address).then_some(place)
    }
}

/// Whether that very value is column `number` of the row at `tid`.
///
/// # Safety
/// As for [`find`].
pub unsafe fn is_of(table: pg_sys::Relation, number: i16, tid: pg_sys::ItemPointerData, value: pg_sys::Datum) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let Some((buffer, block)) = page_of(table, value.value()) else {
            return false;
        };
        let asked = (u32::from(tid.ip_blkid.bi_hi) << 16) | u32::from(tid.ip_blkid.bi_lo);
        let offset = tid.ip_posid;
        asked == block
            && column(table, Place { buffer, block, offset }, number)
                .is_some_and(|found| found.value() == value.value())
    }
}

/// Rows behind `place` on its page that the snapshot sees, at most `most`.
///
/// # Safety
/// The page is pinned and belongs to `table`; `snapshot` is an MVCC snapshot.
pub unsafe fn behind(table: pg_sys::Relation, place: Place, most: usize, snapshot: pg_sys::Snapshot) -> Vec<Place> {
    // SAFETY: the caller's promise; the lock is given back on every way out but an error, whose cleanup does it.
    unsafe {
        pg_sys::LockBuffer(place.buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let found = (place.offset + 1..=last(place.buffer))
            .map(|offset| Place { offset, ..place })
            .filter(|place| {
                tuple(table, *place).is_some_and(|mut tuple| {
                    pg_sys::HeapTupleSatisfiesVisibility(&raw mut tuple, snapshot, place.buffer)
                })
            })
            .take(most)
            .collect();
        pg_sys::LockBuffer(place.buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
        found
    }
}
