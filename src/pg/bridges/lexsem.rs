//! Bridges of kind lexsem at query time: the query's tokens, the few rows of the stored weights that they need, the
//! corrected vector.
//!
//! The weights lie out of line and uncompressed (STORAGE EXTERNAL), so a row is one slice of the toast table. What every
//! query needs (all but the rows) is kept by the backend under the hash of the weights; the registry's row is looked up
//! each time, under the statement's snapshot.

use crate::bridge::BridgeError;
use crate::bridge::lexsem::{Layout, LexSem, Options, Readings, Scheme, entries};
use crate::compute::memory::copied;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::error::OrRaise;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Lane, token_features};
use pgrx::{FromDatum, pg_sys};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Bridges that a backend keeps the fixed part of.
const KEPT: usize = 4;
/// Bytes that are read to find a file's layout; a longer header is read again.
const BEGINNING: usize = 4096;

/// All of a bridge but its rows.
struct Fixed {
    hash: String,
    layout: Layout,
    bridge: LexSem,
}

thread_local! {
    static FIXED: RefCell<Vec<Rc<Fixed>>> = const { RefCell::new(Vec::new()) };
}

/// The stored weights of one row of the registry, not fetched yet.
struct Stored {
    hash: String,
    /// In the current memory context, with the tuple that it belongs to.
    weights: pg_sys::Datum,
}

fn file(what: &str) -> BridgeError {
    BridgeError::File(what.to_owned())
}

/// Finds a bridge in the registry by its name. The caller has checked that it may be used.
fn stored(name: &str) -> Result<Stored, BridgeError> {
    // SAFETY: catalog look-ups with constant names; a scan of an open, locked table under a live snapshot; the tuple is
    // copied before the scan ends.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"situ".as_ptr(), true);
        let relation = match schema == pg_sys::InvalidOid {
            true => pg_sys::InvalidOid,
            false => pg_sys::get_relname_relid(c"bridges".as_ptr(), schema),
        };
        if relation == pg_sys::InvalidOid {
            return Err(file("the extension's table of bridges is missing"));
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(relation, lock);
        let column = |name: &std::ffi::CStr| usize::try_from(pg_sys::get_attnum(relation, name.as_ptr()) - 1).ok();
        let columns = [column(c"name"), column(c"hash"), column(c"weights")];
        let count = (*(*table).rd_att).natts as usize;
        let snapshot = pg_sys::GetActiveSnapshot();
        let scan = pg_sys::systable_beginscan(table, pg_sys::InvalidOid, false, snapshot, 0, std::ptr::null_mut());
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); count], vec![true; count]);
        let mut found = None;
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() || found.is_some() {
                break;
            }
            let copy = pg_sys::heap_copytuple(tuple);
            pg_sys::heap_deform_tuple(copy, (*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let value = |at: usize| {
                let column = columns[at].filter(|column| nulls.get(*column) == Some(&false))?;
                values.get(column).copied()
            };
            let text = |at: usize| value(at).and_then(|datum| String::from_datum(datum, false));
            match (text(0), text(1), value(2)) {
                (Some(found_name), Some(hash), Some(weights)) if found_name == name => {
                    found = Some(Stored { hash, weights });
                }
                _ => pg_sys::heap_freetuple(copy),
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
        found.ok_or_else(|| file("the bridge is not there any more"))
    }
}

impl Stored {
    /// A part of the weights; shorter where they end before it does.
    fn part(&self, range: Range<usize>) -> Result<Vec<u8>, BridgeError> {
        let (Ok(start), Ok(length)) = (i32::try_from(range.start), i32::try_from(range.len())) else {
            return Err(file("it is longer than a gigabyte"));
        };
        // SAFETY: a varlena of the registry's row, whose toast the statement's snapshot keeps; the slice is a plain
        // varlena of its own, which is copied and freed.
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

    fn fixed(&self) -> Result<Rc<Fixed>, BridgeError> {
        let known = FIXED.with_borrow(|kept| kept.iter().find(|fixed| fixed.hash == self.hash).cloned());
        if let Some(fixed) = known {
            return Ok(fixed);
        }
        let mut beginning = self.part(0..BEGINNING)?;
        let wanted = Layout::header_bytes(&beginning)?;
        if wanted > beginning.len() {
            beginning = self.part(0..wanted)?;
        }
        let layout = Layout::parse(&beginning)?;
        let bridge = layout.fixed(&mut |range| self.part(range))?;
        let fixed = Rc::new(Fixed {
            hash: self.hash.clone(),
            layout,
            bridge,
        });
        FIXED.with_borrow_mut(|kept| {
            if kept.len() >= KEPT {
                kept.remove(0);
            }
            kept.push(fixed.clone());
        });
        Ok(fixed)
    }
}

/// What the encoder reads out of a text for a scheme.
#[derive(Default)]
struct Read {
    ids: Vec<u32>,
    states: Vec<f32>,
    vocabulary: Vec<(u32, f32)>,
}

/// Asks the encoder service for what the bridge's scheme needs of the text.
fn read(fixed: &Fixed, model: &ModelRef, text: &str) -> Result<Read, BridgeError> {
    let one = [text];
    let mut found = Read::default();
    match fixed.bridge.scheme {
        Scheme::Clr => {
            let options = fixed.layout.metadata.get("options").cloned().unwrap_or_default();
            let options = Options::from_json(&options)?;
            let mlm = model_by_name(options.mlm.as_deref()).or_raise();
            if options.mlm_fingerprint.is_some_and(|print| print != mlm.fingerprint) {
                return Err(file(
                    "its masked language model is not the one that it was trained over",
                ));
            }
            let weights = token_features::vocabulary(&mlm, Lane::Query, &one, options.vocabulary_top).or_raise();
            found.vocabulary = weights.into_iter().next().unwrap_or_default();
        }
        Scheme::Llr => {
            let states = token_features::states(model, Lane::Query, &one).or_raise();
            let states = states.into_iter().next().unwrap_or_default();
            (found.ids, found.states) = (states.ids, states.values);
        }
        Scheme::LlrPaper => {
            found.states = token_features::first_state(model, Lane::Query, text).or_raise();
        }
        Scheme::Bag | Scheme::Slr | Scheme::SlrPaper => {
            let tokens = token_features::tokens(model, Lane::Query, &one).or_raise();
            found.ids = tokens.into_iter().next().unwrap_or_default();
        }
    }
    Ok(found)
}

/// The vector of a query as the bridge `name` corrects it. `vector` is the query's, `text` its words, `model` the encoder of
/// both.
///
/// # Errors
/// [`BridgeError::File`] for weights that are no lexsem bridge; [`BridgeError::Vectors`] for a vector of other dimensions.
/// Errors of the encoder service are raised.
pub fn apply(name: &str, model: &ModelRef, text: &str, vector: &[f32]) -> Result<Vec<f32>, BridgeError> {
    let stored = stored(name)?;
    let fixed = stored.fixed()?;
    let found = read(&fixed, model, text)?;
    let readings = Readings {
        ids: &found.ids,
        states: &found.states,
        vocabulary: &found.vocabulary,
    };
    let mut rows = Vec::new();
    for (place, weight) in entries(&fixed.bridge, readings)? {
        let range = fixed.layout.row(place).ok_or_else(|| file("a row is missing"))?;
        let row = Layout::numbers(&stored.part(range)?)?;
        rows.push((row, weight));
    }
    let parts = rows.iter().map(|(row, weight)| (row.as_slice(), *weight));
    fixed.bridge.apply(vector, parts)
}
