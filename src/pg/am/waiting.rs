//! Documents that wait to be encoded, by index: what inserts have brought and no flush has put into its index yet.
//!
//! A row leaves only when its entries are in. A flush takes the rows of one index as a [`Flight`]; what the flight still
//! holds when it ends, in whatever way, waits again. Entries are not undone by a rollback, so a row that a
//! subtransaction has put in stays in, and one that it failed to put in is tried again by the next flush.

use super::kind;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// Documents of one index that gather before they are encoded.
pub const GATHER_ROWS: usize = 256;
/// Documents of all indexes, and bytes of their text, that gather in one backend before all are encoded.
pub const MOST_ROWS: usize = 4096;
pub const MOST_BYTES: usize = 4 << 20;

/// A row that waits.
pub struct Waiting {
    pub tid: u64,
    pub title: Option<String>,
    pub body: String,
    /// Entries of it that are in the index: a flush that follows a failed one goes on behind them.
    pub placed: usize,
    pub subtransaction: pg_sys::SubTransactionId,
    /// The transaction that wrote the row; none where the server promises that the row stays.
    pub writer: Option<pg_sys::TransactionId>,
}

impl Waiting {
    /// A row that the current subtransaction brings.
    pub fn new(tid: u64, title: Option<String>, body: String, writer: Option<pg_sys::TransactionId>) -> Waiting {
        Waiting {
            tid,
            title,
            body,
            placed: 0,
            // SAFETY: reads a variable of this backend.
            subtransaction: unsafe { pg_sys::GetCurrentSubTransactionId() },
            writer,
        }
    }

    fn bytes(&self) -> usize {
        self.body.len() + self.title.as_ref().map_or(0, String::len)
    }
}

/// What has to be flushed after a row was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Nothing,
    /// The index of the row.
    Index,
    /// Everything that waits.
    All,
}

#[derive(Default)]
struct Queue {
    indexes: HashMap<pg_sys::Oid, Vec<Waiting>>,
    rows: usize,
    bytes: usize,
}

impl Queue {
    fn add(&mut self, index: pg_sys::Oid, row: Waiting) -> Full {
        self.rows += 1;
        self.bytes += row.bytes();
        let rows = self.indexes.entry(index).or_default();
        rows.push(row);
        if self.rows >= MOST_ROWS || self.bytes >= MOST_BYTES {
            Full::All
        } else if rows.len() >= GATHER_ROWS {
            Full::Index
        } else {
            Full::Nothing
        }
    }

    fn take(&mut self, index: pg_sys::Oid) -> Vec<Waiting> {
        let rows = self.indexes.remove(&index).unwrap_or_default();
        self.rows -= rows.len();
        self.bytes -= rows.iter().map(Waiting::bytes).sum::<usize>();
        rows
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut Waiting) -> bool) {
        self.indexes.retain(|_, rows| {
            rows.retain_mut(&mut keep);
            !rows.is_empty()
        });
        let all = || self.indexes.values().flatten();
        (self.rows, self.bytes) = (all().count(), all().map(Waiting::bytes).sum());
    }
}

thread_local! {
    // A backend has one thread that calls Postgres; these are its documents.
    static WAITING: RefCell<Queue> = RefCell::default();
}

/// Adds a row of an index.
pub fn add(index: pg_sys::Oid, row: Waiting) -> Full {
    WAITING.with_borrow_mut(|waiting| waiting.add(index, row))
}

/// An index for which rows wait.
pub fn any() -> Option<pg_sys::Oid> {
    WAITING.with_borrow(|waiting| waiting.indexes.keys().next().copied())
}

/// Drops the rows of an index that is gone.
pub fn forget(index: pg_sys::Oid) {
    WAITING.with_borrow_mut(|waiting| waiting.take(index));
}

/// Drops everything: the transaction is over.
pub fn forget_all() {
    WAITING.with_borrow_mut(|waiting| *waiting = Queue::default());
}

/// Drops the rows of a subtransaction that aborts, and of those inside it, whose numbers are larger.
pub fn abort(own: pg_sys::SubTransactionId) {
    WAITING.with_borrow_mut(|waiting| waiting.retain(|row| row.subtransaction < own));
}

/// Gives the rows of a subtransaction that commits to its parent.
pub fn commit(own: pg_sys::SubTransactionId, parent: pg_sys::SubTransactionId) {
    WAITING.with_borrow_mut(|waiting| {
        let rows = waiting.indexes.values_mut().flatten();
        for row in rows.filter(|row| row.subtransaction >= own) {
            row.subtransaction = parent;
        }
    });
}

/// The rows of one index on their way into it.
pub struct Flight {
    index: pg_sys::Oid,
    rows: Vec<Option<Waiting>>,
}

/// Takes the rows of an index, one a heap address: an address that comes again was given to another row after the
/// first one had died.
pub fn take(index: pg_sys::Oid) -> Flight {
    let mut rows = WAITING.with_borrow_mut(|waiting| waiting.take(index));
    let mut seen = HashSet::with_capacity(rows.len());
    rows.reverse();
    rows.retain(|row| seen.insert(row.tid));
    rows.reverse();
    Flight {
        index,
        rows: rows.into_iter().map(Some).collect(),
    }
}

impl Flight {
    /// Rows it was taken with, those that are in among them.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is left to put in.
    pub fn is_empty(&self) -> bool {
        self.rows.iter().all(Option::is_none)
    }

    /// Row `at`, unless it is in.
    pub fn get(&self, at: usize) -> Option<&Waiting> {
        self.rows.get(at)?.as_ref()
    }

    /// Counts an entry of row `at` that went in.
    pub fn placed(&mut self, at: usize) {
        if let Some(Some(row)) = self.rows.get_mut(at) {
            row.placed += 1;
        }
    }

    /// All entries of row `at` are in.
    pub fn done(&mut self, at: usize) {
        if let Some(row) = self.rows.get_mut(at) {
            *row = None;
        }
    }

    /// Drops the rows that died while they waited. A row that INSERT ... ON CONFLICT wrote on trial is dead as soon as
    /// another session was faster, though its transaction goes on; a vacuum may give its address away before
    /// the flush. Rows of this transaction that were deleted again are not dead before its end.
    ///
    /// # Safety
    /// `index` is the open index that this flight goes to.
    pub unsafe fn drop_dead(&mut self, index: pg_sys::Relation) {
        if self.rows.iter().flatten().all(|row| row.writer.is_none()) {
            return;
        }
        // SAFETY: the table of an open index; this transaction holds a stronger lock on it since the insert.
        unsafe {
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let heap = pg_sys::table_open((*(*index).rd_index).indrelid, lock);
            let slot = pg_sys::table_slot_create(heap, std::ptr::null_mut());
            for row in &mut self.rows {
                let died = |row: &Waiting| row.writer.is_some() && writer_of(heap, slot, row.tid) != row.writer;
                if row.as_ref().is_some_and(died) {
                    *row = None;
                }
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::table_close(heap, lock);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let left = self.rows.drain(..).flatten();
        WAITING.with_borrow_mut(|waiting| {
            for row in left {
                waiting.add(self.index, row);
            }
        });
    }
}

/// The transaction that wrote the tuple at an address; none where there is no tuple.
///
/// # Safety
/// `heap` is an open table and `slot` one of its own.
unsafe fn writer_of(
    heap: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    tid: u64,
) -> Option<pg_sys::TransactionId> {
    use pg_sys::ffi::pg_guard_ffi_boundary as guard;
    let mut pointer = kind::unpack_tid(tid);
    // SAFETY: the methods of an open table and of its slot; nothing in the guarded calls has a destructor.
    unsafe {
        let fetch = (*(*heap).rd_tableam).tuple_fetch_row_version?;
        let attribute = (*(*slot).tts_ops).getsysattr?;
        let any = &raw mut pg_sys::SnapshotAnyData;
        let tid = &raw mut pointer;
        if !guard(|| fetch(heap, tid, any, slot)) {
            return None;
        }
        let mut null = false;
        let null_at = &raw mut null;
        let number = pg_sys::MinTransactionIdAttributeNumber;
        let value = guard(|| attribute(slot, number, null_at));
        (!null).then(|| pg_sys::TransactionId::from(value.value() as u32))
    }
}
