//! pgvector's datums: `vector` and `halfvec` in and out of Rust slices.
//!
//! Both types are a varlena whose data is `i16 dimensions, i16 unused` and then the numbers, native byte order:
//! f32 for `vector`, IEEE binary16 for `halfvec`. A stored datum may be toasted; what is read here is detoasted
//! first, which also aligns it.

use super::error::Describe;
use super::error::OrRaise;
use crate::compute::memory::room_for;
use half::f16;
use pgrx::PgSqlErrorCode;
use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::IntoDatum;
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};

/// Most dimensions of pgvector's types.
pub const MAX_DIMENSIONS: usize = 16_000;
/// Bytes of an array from which on it is looked first whether there is memory, and of the server's largest blocks.
const MANY: usize = 64 << 10;
const BLOCK: usize = 8 << 20;
/// Bytes before the numbers: the varlena length word, the dimensions and the unused word.
const HEADER: usize = 8;

/// A datum that is not what its type promises, or numbers that the type cannot hold.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// The bytes and the dimensions of a datum do not fit each other.
    #[error("a {kind} of {bytes} bytes cannot have {dimensions} dimensions")]
    Malformed {
        kind: &'static str,
        bytes: usize,
        dimensions: i64,
    },
    /// More dimensions than the type can hold, or none.
    #[error("a vector has 1 to {MAX_DIMENSIONS} dimensions, not {0}")]
    Dimensions(usize),
    /// NaN or infinity, which pgvector's types cannot hold.
    #[error("vector holds NaN or infinity")]
    NotFinite,
}

/// A detoasted datum; a copy that detoasting made is freed on drop.
struct Detoasted {
    original: *mut pg_sys::varlena,
    plain: *mut pg_sys::varlena,
}

impl Detoasted {
    /// # Safety
    /// `datum` is a non-null varlena datum.
    unsafe fn new(datum: pg_sys::Datum) -> Detoasted {
        let original = datum.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: the caller promises a varlena.
        let plain = unsafe { pg_sys::pg_detoast_datum(original) };
        Detoasted { original, plain }
    }

    /// The numbers' bytes, after checking that the dimensions fit the length.
    fn numbers(&self, kind: &'static str, width: usize) -> Result<&[u8], VectorError> {
        // SAFETY: `plain` is a detoasted varlena: its length word says how many bytes are there.
        let bytes = unsafe {
            let size = (*self.plain.cast::<u32>() >> VARLENA_SHIFT) as usize;
            std::slice::from_raw_parts(self.plain.cast::<u8>(), size)
        };
        let malformed = |dimensions| VectorError::Malformed {
            kind,
            bytes: bytes.len(),
            dimensions,
        };
        let (Some(&low), Some(&high)) = (bytes.get(4), bytes.get(5)) else {
            return Err(malformed(0));
        };
        let dimensions = i16::from_ne_bytes([low, high]);
        let count = usize::try_from(dimensions).map_err(|_| malformed(dimensions.into()))?;
        bytes
            .get(HEADER..HEADER + count * width)
            .filter(|_| count > 0)
            .ok_or_else(|| malformed(dimensions.into()))
    }
}

impl Drop for Detoasted {
    fn drop(&mut self) {
        if self.plain != self.original {
            // SAFETY: detoasting made a copy of its own in the current memory context.
            unsafe { pg_sys::pfree(self.plain.cast()) }
        }
    }
}

/// Bits of the length word below the length: two on every server we support (little-endian layout).
#[cfg(target_endian = "little")]
const VARLENA_SHIFT: u32 = 2;
#[cfg(target_endian = "big")]
const VARLENA_SHIFT: u32 = 0;

/// The numbers of a `vector`.
///
/// # Safety
/// `datum` is a non-null datum of pgvector's type `vector`.
pub unsafe fn read_vector(datum: pg_sys::Datum) -> Result<Vec<f32>, VectorError> {
    // SAFETY: promised by the caller.
    let detoasted = unsafe { Detoasted::new(datum) };
    let bytes = detoasted.numbers("vector", 4)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
        .collect())
}

/// The vectors of a `vector[]`, NULLs left out.
///
/// # Safety
/// `datum` is a non-null array of pgvector's type `vector`.
pub unsafe fn read_vectors(datum: pg_sys::Datum) -> Result<Vec<Vec<f32>>, VectorError> {
    // SAFETY: promised by the caller; the array's own header names the type of its elements, and deconstructing gives
    // as many datums and flags as it says.
    unsafe {
        let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let element = (*array).elemtype;
        let (mut length, mut by_value, mut align) = (0i16, false, 0);
        pg_sys::get_typlenbyvalalign(element, &mut length, &mut by_value, &mut align);
        let (mut datums, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            element,
            length.into(),
            by_value,
            align,
            &mut datums,
            &mut nulls,
            &mut count,
        );
        let mut vectors = Vec::new();
        for at in 0..usize::try_from(count).unwrap_or(0) {
            if !*nulls.add(at) {
                vectors.push(read_vector(*datums.add(at))?);
            }
        }
        Ok(vectors)
    }
}

/// The numbers of a `halfvec`, widened.
///
/// # Safety
/// `datum` is a non-null datum of pgvector's type `halfvec`.
pub unsafe fn read_halfvec(datum: pg_sys::Datum) -> Result<Vec<f32>, VectorError> {
    // SAFETY: promised by the caller.
    let detoasted = unsafe { Detoasted::new(datum) };
    let bytes = detoasted.numbers("halfvec", 2)?;
    Ok(bytes
        .chunks_exact(2)
        .map(|b| f16::from_ne_bytes([b[0], b[1]]).to_f32())
        .collect())
}

/// A new `vector` datum in the current memory context.
pub fn write_vector(numbers: &[f32]) -> Result<pg_sys::Datum, VectorError> {
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(VectorError::NotFinite);
    }
    let mut data = Vec::with_capacity(numbers.len() * 4);
    numbers.iter().for_each(|x| data.extend_from_slice(&x.to_ne_bytes()));
    write(numbers.len(), &data)
}

/// A new `halfvec` datum in the current memory context, rounded to binary16.
pub fn write_halfvec(numbers: &[f32]) -> Result<pg_sys::Datum, VectorError> {
    let mut data = Vec::with_capacity(numbers.len() * 2);
    for number in numbers {
        let narrow = f16::from_f32(*number);
        if !narrow.is_finite() {
            return Err(VectorError::NotFinite);
        }
        data.extend_from_slice(&narrow.to_ne_bytes());
    }
    write(numbers.len(), &data)
}

fn write(dimensions: usize, data: &[u8]) -> Result<pg_sys::Datum, VectorError> {
    let narrow = i16::try_from(dimensions)
        .ok()
        .filter(|_| (1..=MAX_DIMENSIONS).contains(&dimensions))
        .ok_or(VectorError::Dimensions(dimensions))?;
    let size = HEADER + data.len();
    // SAFETY: `palloc` gives `size` aligned bytes or raises an error; everything written lies inside them.
    unsafe {
        let bytes = pg_sys::palloc(size).cast::<u8>();
        bytes.cast::<u32>().write((size as u32) << VARLENA_SHIFT);
        std::ptr::copy_nonoverlapping(narrow.to_ne_bytes().as_ptr(), bytes.add(4), 2);
        std::ptr::write_bytes(bytes.add(6), 0, 2);
        std::ptr::copy_nonoverlapping(data.as_ptr(), bytes.add(HEADER), data.len());
        Ok(pg_sys::Datum::from(bytes))
    }
}

/// A `vector` that a function returns.
pub struct Vector(pub Vec<f32>);

/// A `vector[]` that a function returns.
pub struct VectorArray(pub Vec<Option<Vec<f32>>>);

macro_rules! sql_name {
    ($type:ty, $name:literal) => {
        // SAFETY: used for generated SQL only, and ours is written by hand.
        unsafe impl SqlTranslatable for $type {
            const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!($type);
            const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
            const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal($name));
            const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal($name)));
        }
    };
}
sql_name!(Vector, "vector");
sql_name!(VectorArray, "vector[]");

impl IntoDatum for Vector {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(write_vector(&self.0).or_raise())
    }

    /// Not known here: the type belongs to another extension. Callers take it from the function's result.
    fn type_oid() -> pg_sys::Oid {
        pg_sys::InvalidOid
    }
}

// SAFETY: the datum is a `vector`, and the functions that return it are declared so.
unsafe impl BoxRet for Vector {
    unsafe fn box_into<'fcx>(self, call: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        let datum = write_vector(&self.0).or_raise();
        // SAFETY: as above.
        unsafe { call.return_raw_datum(datum) }
    }
}

// SAFETY: the datum is an array of the element type of the function's declared result, `vector`.
unsafe impl BoxRet for VectorArray {
    unsafe fn box_into<'fcx>(self, call: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // The server copies each vector, and then all of them into the array, in blocks of up to 8 MB. Where one of these is
        // refused the error is copied as well, and where that is refused too the server's process ends.
        let numbers: usize = self.0.iter().flatten().map(Vec::len).sum();
        if numbers * size_of::<f32>() >= MANY {
            room_for(2 * numbers * size_of::<f32>() + BLOCK).or_raise();
        }
        let mut nulls: Vec<bool> = self.0.iter().map(Option::is_none).collect();
        let mut elements: Vec<pg_sys::Datum> = self
            .0
            .into_iter()
            .map(|vector| vector.map_or(pg_sys::Datum::null(), |vector| write_vector(&vector).or_raise()))
            .collect();
        // SAFETY: the call's own function; array pieces are of the lengths given.
        unsafe {
            let function = (*(*call.as_mut_ptr()).flinfo).fn_oid;
            let element = pg_sys::get_element_type(pg_sys::get_func_rettype(function));
            let (mut length, mut by_value, mut align) = (0i16, false, 0);
            pg_sys::get_typlenbyvalalign(element, &mut length, &mut by_value, &mut align);
            let (mut count, mut first) = (elements.len() as i32, 1);
            let array = pg_sys::construct_md_array(
                elements.as_mut_ptr(),
                nulls.as_mut_ptr(),
                1,
                &mut count,
                &mut first,
                element,
                length.into(),
                by_value,
                align,
            );
            call.return_raw_datum(pg_sys::Datum::from(array))
        }
    }
}

impl Describe for VectorError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            VectorError::Malformed { .. } => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            VectorError::Dimensions(_) => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            VectorError::NotFinite => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
        }
    }
}
