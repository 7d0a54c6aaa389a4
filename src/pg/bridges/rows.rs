//! A row of `situ.bridges`, as everything that uses bridges finds it.
//!
//! The table is scanned below the privileges of whoever asks: everybody may use a bridge by its name, and an index's
//! own rows must not depend on who inserts them. Who may read the weights, or change the row, is for the caller to
//! check. The weights are read where they are needed only: all of them, or slices (STORAGE EXTERNAL).

use crate::bridge::train::acceptance::Verdict;
use crate::bridge::{BridgeError, BridgeKind};
use crate::compute::memory::copied;
use crate::pg::catalog::owner::{PUBLIC, table};
use crate::pg::catalog::read::room_for_copy;
use crate::pg::version;
use pgrx::{FromDatum, pg_sys};
use std::ops::Range;

/// Which rows are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// Those that the statement sees.
    Statement,
    /// Those that are committed now.
    Latest,
}

/// Columns that are read.
const COLUMNS: [&std::ffi::CStr; 8] = [
    c"name",
    c"kind",
    c"model",
    c"fingerprint",
    c"state",
    c"hash",
    c"owner",
    c"weights",
];

/// A row of the registry without its weights.
#[derive(Clone, Debug)]
pub struct Registered {
    pub name: String,
    pub kind: BridgeKind,
    pub model: String,
    pub fingerprint: String,
    pub verdict: Verdict,
    pub hash: String,
    pub owner: pg_sys::Oid,
}

/// A row as it was read; its weights are not fetched yet.
pub struct Row {
    name: String,
    kind: String,
    model: String,
    fingerprint: String,
    state: String,
    hash: String,
    owner: pg_sys::Oid,
    /// In the current memory context, with the tuple that it belongs to.
    weights: pg_sys::Datum,
}

/// Values of a tuple by their place in [`COLUMNS`].
struct Values<'a> {
    columns: [Option<usize>; COLUMNS.len()],
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
}

impl Values<'_> {
    fn datum(&self, at: usize) -> Option<pg_sys::Datum> {
        let column = self.columns[at].filter(|column| self.nulls.get(*column) == Some(&false))?;
        self.values.get(column).copied()
    }

    /// # Safety
    /// The column is of type text, and its tuple is there.
    unsafe fn text(&self, at: usize) -> String {
        // SAFETY: the caller's promise.
        let text = self
            .datum(at)
            .and_then(|datum| unsafe { String::from_datum(datum, false) });
        text.unwrap_or_default()
    }
}

/// Finds the bridge of that name and hands it to `take`, while the snapshot keeps what lies out of line. `None` where
/// there is no such bridge, or no registry.
pub fn look<T>(name: &str, snapshot: Snapshot, take: impl FnOnce(&Row) -> T) -> Option<T> {
    version::check();
    let relation = table(PUBLIC, c"bridges")?;
    // SAFETY: in a transaction; the snapshot is registered until `take` has returned, or goes with the abort.
    unsafe {
        let taken = match snapshot {
            Snapshot::Statement if pg_sys::ActiveSnapshotSet() => pg_sys::GetActiveSnapshot(),
            Snapshot::Statement => pg_sys::GetTransactionSnapshot(),
            Snapshot::Latest => pg_sys::GetLatestSnapshot(),
        };
        let taken = pg_sys::RegisterSnapshot(taken);
        let result = scan(relation, name, taken).map(|row| take(&row));
        pg_sys::UnregisterSnapshot(taken);
        result
    }
}

/// # Safety
/// `relation` is the registry, `snapshot` a registered snapshot.
unsafe fn scan(relation: pg_sys::Oid, name: &str, snapshot: pg_sys::Snapshot) -> Option<Row> {
    // SAFETY: a scan of an open, locked table under a live snapshot; the tuple that is found is copied before the scan
    // ends.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(relation, lock);
        let columns = COLUMNS.map(|name| usize::try_from(pg_sys::get_attnum(relation, name.as_ptr()) - 1).ok());
        let count = (*(*table).rd_att).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); count], vec![true; count]);
        let scan = pg_sys::systable_beginscan(table, pg_sys::InvalidOid, false, snapshot, 0, std::ptr::null_mut());
        let mut found = None;
        while found.is_none() {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let copy = pg_sys::heap_copytuple(tuple);
            pg_sys::heap_deform_tuple(copy, (*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let values = Values {
                columns,
                values: &values,
                nulls: &nulls,
            };
            match values.datum(7) {
                Some(weights) if values.text(0) == name => found = Some(row(&values, weights)),
                _ => pg_sys::heap_freetuple(copy),
            }
        }
        pg_sys::systable_endscan(scan);
        // The lock stays to the end of the transaction, as a statement's would: parts of the weights are still to be read.
        pg_sys::table_close(table, pg_sys::NoLock as pg_sys::LOCKMODE);
        found
    }
}

/// # Safety
/// Values of a row of the registry, whose tuple is there.
unsafe fn row(values: &Values<'_>, weights: pg_sys::Datum) -> Row {
    // SAFETY: columns are those of sql/70_bridges.sql; an owner is an OID inside.
    unsafe {
        let owner = values.datum(6).and_then(|datum| pg_sys::Oid::from_datum(datum, false));
        Row {
            name: values.text(0),
            kind: values.text(1),
            model: values.text(2),
            fingerprint: values.text(3),
            state: values.text(4),
            hash: values.text(5),
            owner: owner.unwrap_or(pg_sys::InvalidOid),
            weights,
        }
    }
}

impl Row {
    /// What it says.
    ///
    /// # Errors
    /// [`BridgeError::File`] for a kind that is not known.
    pub fn registered(&self) -> Result<Registered, BridgeError> {
        let unknown = || BridgeError::File(format!("kind \"{}\" is not known", self.kind));
        Ok(Registered {
            name: self.name.clone(),
            kind: BridgeKind::parse(&self.kind).ok_or_else(unknown)?,
            model: self.model.clone(),
            fingerprint: self.fingerprint.clone(),
            verdict: Verdict::from_name(&self.state).unwrap_or(Verdict::Rejected),
            hash: self.hash.clone(),
            owner: self.owner,
        })
    }

    /// SHA-256 of the weights.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// All of the weights.
    pub fn weights(&self) -> Vec<u8> {
        // SAFETY: a varlena of the row, whose toast the snapshot keeps.
        let bytes = unsafe {
            room_for_copy(self.weights);
            Vec::<u8>::from_datum(self.weights, false)
        };
        bytes.unwrap_or_default()
    }

    /// A part of the weights; shorter where they end before it does.
    ///
    /// # Errors
    /// [`BridgeError::File`] for a part behind a gigabyte, [`BridgeError::Compute`] where there is no memory for it.
    pub fn part(&self, range: Range<usize>) -> Result<Vec<u8>, BridgeError> {
        let (Ok(start), Ok(length)) = (i32::try_from(range.start), i32::try_from(range.len())) else {
            return Err(BridgeError::File("it is longer than a gigabyte".to_owned()));
        };
        // SAFETY: a varlena of the row, whose toast the snapshot keeps; the slice is a plain varlena of its own, which
        // is copied and freed.
        unsafe {
            let slice = pg_sys::pg_detoast_datum_slice(self.weights.cast_mut_ptr(), start, length);
            let bytes = copied(std::slice::from_raw_parts(
                pgrx::varlena::vardata_any(slice).cast::<u8>(),
                pgrx::varlena::varsize_any_exhdr(slice),
            ));
            pg_sys::pfree(slice.cast());
            Ok(bytes?)
        }
    }
}
