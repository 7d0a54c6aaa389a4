//! Which rows of a table the caller may see, and what an index reads of them.
//!
//! A scan finds row versions that a snapshot sees; [`Rights`] says which of them the caller may see, by the privileges and
//! policies of one relation. Over partitions that is the partitioned table, as for a SELECT on it. Where no policy
//! applies nothing is asked of the server but the privilege.
//!
//! What stands in a row is computed by the index's own expressions ([`IndexedText`]) as the table's owner in a
//! security-restricted operation, as the server does when it builds the index: whoever wrote them must not run them as the
//! caller.

use crate::pg::am::kind;
use crate::pg::catalog::names::qualified;
use crate::pg::catalog::names::{leaves, table_of};
use crate::pg::catalog::read;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::collections::HashMap;

/// The relation whose privileges and policies decide about the rows of a table.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    /// The table itself, or a partitioned table above it.
    relation: pg_sys::Oid,
    /// The table that holds the rows.
    table: pg_sys::Oid,
    /// Policies of the relation apply to the current user.
    policies: bool,
}

/// Whether the current user may read a relation.
fn may_read(relation: pg_sys::Oid) -> bool {
    // SAFETY: a look at the catalogue in a transaction.
    unsafe {
        let mode = pg_sys::ACL_SELECT as pg_sys::AclMode;
        pg_sys::pg_class_aclcheck(relation, pg_sys::GetUserId(), mode) == pg_sys::AclResult::ACLCHECK_OK
    }
}

impl Rights {
    /// The rights that `relation` gives over the rows of `table`; an error where the current user may not read it.
    pub fn new(relation: pg_sys::Oid, table: pg_sys::Oid) -> Rights {
        // SAFETY: looks at the catalogue in a transaction; the relation is locked, so its name is there.
        let policies = unsafe {
            if !may_read(relation) {
                let kind = pg_sys::get_relkind_objtype(pg_sys::get_rel_relkind(relation));
                let name = pg_sys::get_rel_name(relation);
                pg_sys::aclcheck_error(pg_sys::AclResult::ACLCHECK_NO_PRIV, kind, name);
            }
            pg_sys::check_enable_rls(relation, pg_sys::InvalidOid, false) as u32
                == pg_sys::CheckEnableRlsResult::RLS_ENABLED
        };
        Rights {
            relation,
            table,
            policies,
        }
    }

    /// The rights over a table that a statement of the caller's scans, by itself or below a partitioned table: those of the
    /// topmost partitioned table that the current user may read, else those of the table.
    pub fn of_scanned(table: pg_sys::Oid) -> Rights {
        let statement = "SELECT p.relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors($1) \
                         WITH ORDINALITY p(relid, place) ORDER BY p.place DESC";
        // SAFETY: a look at the catalogue.
        let partition = unsafe { pg_sys::get_rel_relispartition(table) };
        let above: Vec<pg_sys::Oid> = match partition {
            true => read::column(statement, &[table.into()]),
            false => Vec::new(),
        };
        Rights::new(above.into_iter().find(|above| may_read(*above)).unwrap_or(table), table)
    }

    /// The statement that reads rows by ctid: parameter 1 is a tid[] as text.
    fn statement(&self, column: Option<&str>) -> String {
        let wanted = match column {
            Some(column) => format!("({})::pg_catalog.text", pgrx::spi::quote_identifier(column)),
            None => "NULL::pg_catalog.text".to_owned(),
        };
        let relation = qualified(self.relation);
        let from = match self.relation == self.table {
            true => format!("ONLY {relation} WHERE"),
            false => format!(
                "{relation} WHERE tableoid OPERATOR(pg_catalog.=) {} AND",
                self.table.to_u32()
            ),
        };
        format!("SELECT ctid, {wanted} FROM {from} ctid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.tid[])")
    }

    /// Those of the row versions `tids` (which the snapshot sees) that the caller may see, with a column as text where
    /// one is wanted.
    pub fn visible(&self, tids: &[u64], column: Option<&str>) -> HashMap<u64, Option<String>> {
        if tids.is_empty() || (!self.policies && column.is_none()) {
            return tids.iter().map(|tid| (*tid, None)).collect();
        }
        let list: Vec<String> = tids
            .iter()
            .map(|tid| format!("\"({},{})\"", tid >> 16, tid & 0xffff))
            .collect();
        let array = format!("{{{}}}", list.join(","));
        let mut rows = HashMap::new();
        read::each(&self.statement(column), &[array.into()], |row| {
            if let Some(mut ctid) = row.get::<pg_sys::ItemPointerData>(1) {
                // SAFETY: a valid item pointer on the stack.
                rows.insert(unsafe { kind::pack_tid(&raw mut ctid) }, row.get::<String>(2));
            }
        });
        rows
    }
}

/// The row versions that `snapshot` sees under addresses of an index (which are those of HOT chains' first versions), in
/// their order.
///
/// # Safety
/// `table` is open, `snapshot` is registered or active.
pub unsafe fn versions(table: pg_sys::Relation, tids: &[u64], snapshot: pg_sys::Snapshot) -> Vec<Option<u64>> {
    // SAFETY: the caller's promise; the table's methods are called behind a guard, because an error inside must not jump
    // over Rust's frames. After one, the abort of the transaction releases what the fetch holds.
    unsafe {
        let methods = &*(*table).rd_tableam;
        let (Some(begin), Some(fetch), Some(end)) = (
            methods.index_fetch_begin,
            methods.index_fetch_tuple,
            methods.index_fetch_end,
        ) else {
            return vec![None; tids.len()];
        };
        let slot = pg_sys::table_slot_create(table, std::ptr::null_mut());
        let scan = pg_guard_ffi_boundary(|| begin(table));
        let found = tids.iter().map(|tid| {
            let mut place = kind::unpack_tid(*tid);
            let (mut again, mut dead) = (false, false);
            let seen =
                pg_guard_ffi_boundary(|| fetch(scan, &raw mut place, snapshot, slot, &raw mut again, &raw mut dead));
            seen.then(|| kind::pack_tid(&raw mut (*slot).tts_tid))
        });
        let found = found.collect();
        pg_guard_ffi_boundary(|| end(scan));
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        found
    }
}

/// Does something as the owner of `table`, in a security-restricted operation with the server's own search path, as index
/// builds do. After an error the abort of the transaction gives user and settings back.
///
/// # Safety
/// `table` is open.
unsafe fn as_owner_of<T>(table: pg_sys::Relation, work: impl FnOnce() -> T) -> T {
    // SAFETY: the caller's promise; user, context and settings are put back with what was read here.
    unsafe {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let owner = (*(*table).rd_rel).relowner;
        pg_sys::SetUserIdAndSecContext(owner, context | pg_sys::SECURITY_RESTRICTED_OPERATION as i32);
        let level = pg_sys::NewGUCNestLevel();
        #[cfg(not(feature = "pg16"))]
        pg_sys::RestrictSearchPath();
        let result = work();
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(user, context);
        result
    }
}

/// What an index over text holds of a row: its body and its title.
pub type Text = [Option<String>; 2];

/// Reads what an index over text holds of rows.
pub struct IndexedText {
    table: pg_sys::Relation,
    information: *mut pg_sys::IndexInfo,
    state: *mut pg_sys::EState,
    /// The index's predicate, made ready at the first row that is judged by it.
    predicate: *mut pg_sys::ExprState,
    slot: *mut pg_sys::TupleTableSlot,
}

impl IndexedText {
    /// A reader of the columns of `index`, which is over text.
    ///
    /// # Safety
    /// `index` is an open index of the open `table`; both stay open while the reader is used. [`IndexedText::close`]
    /// frees it, as does the end of the memory context after an error.
    pub unsafe fn open(table: pg_sys::Relation, index: pg_sys::Relation) -> IndexedText {
        // SAFETY: the caller's promise.
        unsafe {
            let state = pg_sys::CreateExecutorState();
            pg_sys::MakePerTupleExprContext(state);
            IndexedText {
                table,
                information: pg_sys::BuildIndexInfo(index),
                state,
                predicate: std::ptr::null_mut(),
                slot: pg_sys::table_slot_create(table, std::ptr::null_mut()),
            }
        }
    }

    /// The indexed text of the row version at `tid`; `None` for NULL, and where `snapshot` does not see it.
    ///
    /// # Safety
    /// `snapshot` is registered or active.
    pub unsafe fn read(&mut self, tid: u64, snapshot: pg_sys::Snapshot) -> Option<String> {
        // SAFETY: the caller's promise.
        let [body, _] = unsafe { self.columns(tid, snapshot, false) }?;
        body
    }

    /// Body and title of the row version at `tid`; `None` where `snapshot` does not see it, or, if it is to be `judged`,
    /// where the index's predicate leaves it out.
    ///
    /// # Safety
    /// `snapshot` is registered or active.
    unsafe fn columns(&mut self, tid: u64, snapshot: pg_sys::Snapshot, judged: bool) -> Option<Text> {
        // SAFETY: relation, slot and state live as long as the reader; the table's methods are called behind a guard,
        // because an error inside must not jump over Rust's frames.
        unsafe {
            let mut place = kind::unpack_tid(tid);
            let fetch = (*(*self.table).rd_tableam).tuple_fetch_row_version?;
            let found = pg_guard_ffi_boundary(|| fetch(self.table, &raw mut place, snapshot, self.slot));
            if !found {
                return None;
            }
            let judged = judged && !(*self.information).ii_Predicate.is_null();
            let computed = judged || !(*self.information).ii_Expressions.is_null();
            let text = match computed {
                true => as_owner_of(self.table, || self.text(judged)),
                false => self.text(false),
            };
            pg_sys::MemoryContextReset((*(*self.state).es_per_tuple_exprcontext).ecxt_per_tuple_memory);
            text
        }
    }

    /// Body and title of the row in the slot, if the predicate holds where it is asked.
    ///
    /// # Safety
    /// The slot holds a row.
    unsafe fn text(&mut self, judged: bool) -> Option<Text> {
        const COLUMNS: usize = pg_sys::INDEX_MAX_KEYS as usize;
        // SAFETY: the arrays hold as many columns as an index can have.
        unsafe {
            let context = (*self.state).es_per_tuple_exprcontext;
            (*context).ecxt_scantuple = self.slot;
            let previous = pg_sys::MemoryContextSwitchTo((*context).ecxt_per_tuple_memory);
            let text = (!judged || self.holds(context)).then(|| {
                let (mut values, mut nulls) = ([pg_sys::Datum::null(); COLUMNS], [true; COLUMNS]);
                pg_sys::FormIndexDatum(
                    self.information,
                    self.slot,
                    self.state,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
                [0, 1].map(|column| (!nulls[column]).then(|| kind::read_text(values[column])))
            });
            pg_sys::MemoryContextSwitchTo(previous);
            text
        }
    }

    /// Whether the index's predicate holds for the row in the slot.
    ///
    /// # Safety
    /// `context` is this reader's, with the row; the index has a predicate.
    unsafe fn holds(&mut self, context: *mut pg_sys::ExprContext) -> bool {
        // SAFETY: the caller's promise. A qual is never NULL.
        unsafe {
            if self.predicate.is_null() {
                self.predicate = pg_sys::ExecPrepareQual((*self.information).ii_Predicate, self.state);
            }
            let Some(evaluate) = self.predicate.as_ref().and_then(|predicate| predicate.evalfunc) else {
                return true;
            };
            let mut null = false;
            let held = pg_guard_ffi_boundary(|| evaluate(self.predicate, context, &raw mut null));
            !null && held.value() != 0
        }
    }

    /// Frees what it holds.
    pub fn close(self) {
        // SAFETY: made by `open`.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::FreeExecutorState(self.state);
        }
    }
}

/// Reads the indexed text of rows of all leaves of an index, for those who go through a table and not through its index.
pub struct Bodies {
    /// By table, with the relations that are open for it.
    readers: HashMap<pg_sys::Oid, (IndexedText, pg_sys::Relation, pg_sys::Relation)>,
}

impl Bodies {
    /// A reader of `index`, an index over text, or a partitioned one of such.
    pub fn of(index: pg_sys::Oid) -> Bodies {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let readers = leaves(index).into_iter().map(|leaf| {
            // SAFETY: opened table first, under locks kept to the end of the transaction; closed by `close`.
            unsafe {
                let heap = pg_sys::table_open(table_of(leaf), lock);
                let relation = pg_sys::index_open(leaf, lock);
                ((*heap).rd_id, (IndexedText::open(heap, relation), heap, relation))
            }
        });
        Bodies {
            readers: readers.collect(),
        }
    }

    /// The columns of a statement that [`Bodies::read`] takes.
    pub const PLACE: &'static str = "tableoid, ctid";

    /// Body and title of a row that a statement has just read, by its two columns from `column` on; `None` where the index
    /// leaves it out.
    pub fn read(&mut self, row: &read::Row, column: i32) -> Option<Text> {
        let (table, mut place) = (
            row.get::<pg_sys::Oid>(column)?,
            row.get::<pg_sys::ItemPointerData>(column + 1)?,
        );
        let (reader, ..) = self.readers.get_mut(&table)?;
        // SAFETY: a valid item pointer on the stack; the statement's own snapshot is active.
        unsafe { reader.columns(kind::pack_tid(&raw mut place), pg_sys::GetActiveSnapshot(), true) }
    }

    /// Closes what it opened.
    pub fn close(self) {
        for (_, (reader, heap, relation)) in self.readers {
            reader.close();
            // SAFETY: opened by `of`; the locks stay until the transaction ends.
            unsafe {
                pg_sys::index_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
                pg_sys::table_close(heap, pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
    }
}
