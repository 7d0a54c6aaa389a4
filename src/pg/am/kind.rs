//! What an index is over: the kinds of operator classes, and the reading of their keys.
//!
//! Every operator class of the access method has support function 1, which takes nothing and returns the class's
//! number in [`KeyKind`]; so a class made by a user over another type name still says what it is.

use crate::index::{Element, Metric};
use crate::pg::catalog::read::room_for_copy;
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::vector;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;

/// Support function 1 of an operator class: its kind.
pub const KIND_PROCEDURE: u16 = 1;

/// The most dimensions that can be indexed.
pub const MAX_DIMENSIONS: usize = 16_000;

/// What the first key column holds and how it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Documents, encoded by a model, compared as its vectors are.
    Text,
    /// The title column beside a text column.
    Title,
    /// pgvector's `vector`.
    Vector(Metric),
    /// pgvector's `halfvec`.
    HalfVector(Metric),
}

impl KeyKind {
    fn from_number(number: i32) -> Option<KeyKind> {
        Some(match number {
            1 => KeyKind::Text,
            2 => KeyKind::Title,
            11 => KeyKind::Vector(Metric::L2),
            12 => KeyKind::Vector(Metric::InnerProduct),
            13 => KeyKind::Vector(Metric::Cosine),
            21 => KeyKind::HalfVector(Metric::L2),
            22 => KeyKind::HalfVector(Metric::InnerProduct),
            23 => KeyKind::HalfVector(Metric::Cosine),
            _ => return None,
        })
    }

    /// The distance that the index orders by; over text, until its model says another.
    pub fn metric(self) -> Metric {
        match self {
            KeyKind::Text | KeyKind::Title => Metric::Cosine,
            KeyKind::Vector(metric) | KeyKind::HalfVector(metric) => metric,
        }
    }

    /// What is stored for the exact re-rank.
    pub fn element(self) -> Element {
        match self {
            KeyKind::HalfVector(_) => Element::F16,
            _ => Element::F32,
        }
    }
}

/// The kind of key column `column` (from 1) of `index`.
///
/// # Safety
/// `index` is an open index relation of this access method.
pub unsafe fn column_kind(index: pg_sys::Relation, column: i16) -> KeyKind {
    // SAFETY: the caller's promise; the procedure's OID comes from the operator class.
    let number = unsafe {
        let procedure = pg_sys::index_getprocinfo(index, column, KIND_PROCEDURE);
        pg_sys::FunctionCall0Coll(procedure, pg_sys::InvalidOid).value() as i32
    };
    KeyKind::from_number(number).unwrap_or_else(|| {
        fail(
            PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
            format!("operator class of column {column} has unknown kind {number}"),
        )
    })
}

/// The shape of an index's key: checked at every build.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub kind: KeyKind,
    /// Whether a title column follows the text column.
    pub title: bool,
}

/// Reads and checks the key columns of `index`.
///
/// # Safety
/// `index` is an open index relation of this access method.
pub unsafe fn read_key(index: pg_sys::Relation) -> Key {
    // SAFETY: the caller's promise.
    unsafe {
        let columns = (*(*index).rd_index).indnatts;
        let kind = column_kind(index, 1);
        if kind == KeyKind::Title {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
                "the first column of a situ index cannot be a title".into(),
                "Name the text column first: USING situ (body, title situ_title_ops).",
            );
        }
        if columns == 1 {
            return Key { kind, title: false };
        }
        if kind != KeyKind::Text {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "a situ index over vectors has one column".into(),
                "Create one index for each vector column.",
            );
        }
        if columns > 2 || column_kind(index, 2) != KeyKind::Title {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "a situ index over text has the text column and at most one title column".into(),
                "Give the second column the operator class situ_title_ops: USING situ (body, title situ_title_ops).",
            );
        }
        Key { kind, title: true }
    }
}

/// The number of dimensions declared for the first column, if its type has one (`vector(384)`).
///
/// # Safety
/// `index` is an open index relation.
pub unsafe fn declared_dimensions(index: pg_sys::Relation) -> Option<usize> {
    // SAFETY: a catalog look-up for an open relation; an index has at least one attribute.
    let modifier = unsafe {
        let (mut kind, mut modifier, mut collation) = (pg_sys::InvalidOid, -1, pg_sys::InvalidOid);
        pg_sys::get_atttypetypmodcoll((*index).rd_id, 1, &raw mut kind, &raw mut modifier, &raw mut collation);
        modifier
    };
    usize::try_from(modifier).ok().filter(|&dimensions| dimensions > 0)
}

/// Reads a vector key as f32.
///
/// # Safety
/// `datum` is a non-null value of the column's type.
pub unsafe fn read_vector(kind: KeyKind, datum: pg_sys::Datum) -> Vec<f32> {
    // SAFETY: the caller's promise.
    let read = unsafe {
        match kind {
            KeyKind::HalfVector(_) => vector::read_halfvec(datum),
            _ => vector::read_vector(datum),
        }
    };
    crate::pg::error::OrRaise::or_raise(read)
}

/// Reads a text value, detoasted.
///
/// # Safety
/// `datum` is a non-null `text`.
pub unsafe fn read_text(datum: pg_sys::Datum) -> String {
    // SAFETY: the caller's promise.
    unsafe { room_for_copy(datum) };
    // SAFETY: the caller's promise.
    let text: Option<String> = unsafe { pgrx::FromDatum::from_datum(datum, false) };
    text.unwrap_or_default()
}

/// Packs a heap tuple's address as block << 16 | offset.
///
/// # Safety
/// `tid` points to a valid item pointer.
pub unsafe fn pack_tid(tid: pg_sys::ItemPointer) -> u64 {
    // SAFETY: the caller's promise.
    let tid = unsafe { *tid };
    let block = (u64::from(tid.ip_blkid.bi_hi) << 16) | u64::from(tid.ip_blkid.bi_lo);
    (block << 16) | u64::from(tid.ip_posid)
}

/// The reverse of [`pack_tid`].
pub fn unpack_tid(tid: u64) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData {
            bi_hi: (tid >> 32) as u16,
            bi_lo: (tid >> 16) as u16,
        },
        ip_posid: tid as u16,
    }
}

/// 64 bits that identify a document's body: the first of its SHA-256, so that they mean the same everywhere.
pub fn body_hash(body: &str) -> u64 {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(body.as_bytes());
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// Support function 1 of the operator classes, one a class.
mod procedures {
    use pgrx::prelude::*;

    #[pg_extern(sql = false)]
    fn kind_text() -> i32 {
        1
    }
    #[pg_extern(sql = false)]
    fn kind_title() -> i32 {
        2
    }
    #[pg_extern(sql = false)]
    fn kind_vector_l2() -> i32 {
        11
    }
    #[pg_extern(sql = false)]
    fn kind_vector_ip() -> i32 {
        12
    }
    #[pg_extern(sql = false)]
    fn kind_vector_cosine() -> i32 {
        13
    }
    #[pg_extern(sql = false)]
    fn kind_halfvec_l2() -> i32 {
        21
    }
    #[pg_extern(sql = false)]
    fn kind_halfvec_ip() -> i32 {
        22
    }
    #[pg_extern(sql = false)]
    fn kind_halfvec_cosine() -> i32 {
        23
    }
}
