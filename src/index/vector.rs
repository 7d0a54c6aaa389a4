//! Vectors on their way into and out of the index: checks, records, exact distances.

use super::IndexError;
use super::page::{
    self, FIRST, Kind, Layout, NONE, RECORD_HEADER, Reader, RecordPtr, is_kind, put_u32, put_u64, read_piece, u32_at,
    u64_at,
};
use super::store::{Block, PageStore};
use super::types::{Element, Entry, Hit, Metric};
use crate::compute::vectors::distance::{Stored, dot, dot_and_norm, l2_squared};
use crate::text::Span;

fn stored(element: Element) -> Stored {
    match element {
        Element::F32 => Stored::F32,
        Element::F16 => Stored::F16,
    }
}

/// Euclidean norm, summed in f64 so that it neither overflows nor vanishes.
pub fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// Fails unless the vector has `dimensions` finite components.
pub fn check(vector: &[f32], dimensions: usize) -> Result<(), IndexError> {
    if vector.len() != dimensions {
        return Err(IndexError::Dimensions {
            expected: dimensions,
            found: vector.len(),
        });
    }
    if vector.iter().all(|x| x.is_finite()) {
        Ok(())
    } else {
        Err(IndexError::NotFinite)
    }
}

/// What the codes and centroids see of a vector: itself, or for cosine its direction.
///
/// `None` for a zero vector under cosine, which has no direction and is not indexed.
pub fn prepare(vector: &[f32], metric: Metric, out: &mut Vec<f32>) -> Option<()> {
    out.clear();
    if metric == Metric::Cosine {
        let norm = norm(vector);
        if norm == 0.0 {
            return None;
        }
        out.extend(vector.iter().map(|&x| (f64::from(x) / norm) as f32));
    } else {
        out.extend_from_slice(vector);
    }
    Some(())
}

/// Writes an entry's record: header and vector.
pub fn put_record(entry: &Entry<'_>, element: Element, out: &mut Vec<u8>) -> Result<(), IndexError> {
    out.clear();
    out.resize(RECORD_HEADER, 0);
    put_u64(out, 0, entry.tid);
    put_u64(out, 8, entry.hash);
    put_u32(out, 16, entry.ordinal);
    put_u32(out, 20, entry.span.start);
    put_u32(out, 24, entry.span.end);
    match element {
        Element::F32 => entry
            .vector
            .iter()
            .for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Element::F16 => {
            for &x in entry.vector {
                let half = half::f16::from_f32(x);
                if !half.is_finite() {
                    return Err(IndexError::NotFinite);
                }
                out.extend_from_slice(&half.to_le_bytes());
            }
        }
    }
    Ok(())
}

/// A query as the exact distances need it.
pub struct Exact {
    metric: Metric,
    kind: Stored,
    query: Vec<f32>,
    norm: f64,
    scratch: Vec<u8>,
}

/// An exact distance, twice: as reported, and on the scale of the lower bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exactly {
    pub reported: f64,
    /// Squared euclidean distance, of the directions under cosine; negative inner product.
    pub bound: f32,
}

impl Exact {
    pub fn new(query: &[f32], metric: Metric, element: Element) -> Exact {
        Exact {
            metric,
            kind: stored(element),
            query: query.to_vec(),
            norm: norm(query),
            scratch: Vec::new(),
        }
    }

    /// The hit for the entry `(tid, ordinal)` whose record lies at `place`; `None` if another entry lies there by now.
    pub fn fetch<S: PageStore>(
        &mut self,
        reader: &mut Reader<S>,
        layout: &Layout,
        place: RecordPtr,
        tid: u64,
        ordinal: u32,
    ) -> Result<Option<(Hit, Exactly)>, IndexError> {
        if place.block == NONE {
            return Err(page::corrupted(place.block, "a lane without a vector"));
        }
        if layout.slots > 0 {
            let page = reader.read(place.block)?;
            if usize::from(place.slot) >= layout.slots {
                return Err(page::corrupted(
                    place.block,
                    format!("slot {} of {}", place.slot, layout.slots),
                ));
            }
            if !is_kind(&page, Kind::Vectors) || !layout.is_used(&page, place.slot) {
                return Ok(None);
            }
            return Ok(self.judge(layout.record(&page, place.slot), tid, ordinal));
        }
        let mut record = std::mem::take(&mut self.scratch);
        let whole = read_pieces(reader, layout, place.block, tid, ordinal, &mut record)?;
        let result = if whole { self.judge(&record, tid, ordinal) } else { None };
        self.scratch = record;
        Ok(result)
    }

    /// The vector at `place`, decoded; `None` if another entry lies there by now.
    pub fn read<S: PageStore>(
        reader: &mut Reader<S>,
        layout: &Layout,
        element: Element,
        place: RecordPtr,
        hit: &Hit,
    ) -> Result<Option<Vec<f32>>, IndexError> {
        let mut record = Vec::new();
        if layout.slots > 0 {
            let page = reader.read(place.block)?;
            if usize::from(place.slot) < layout.slots
                && is_kind(&page, Kind::Vectors)
                && layout.is_used(&page, place.slot)
            {
                record.extend_from_slice(layout.record(&page, place.slot));
            }
        } else if place.block == NONE || !read_pieces(reader, layout, place.block, hit.tid, hit.ordinal, &mut record)? {
            return Ok(None);
        }
        if record.len() < RECORD_HEADER || u64_at(&record, 0) != hit.tid || u32_at(&record, 16) != hit.ordinal {
            return Ok(None);
        }
        let bytes = &record[RECORD_HEADER..];
        Ok(Some(match element {
            Element::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Element::F16 => bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
        }))
    }

    fn judge(&self, record: &[u8], tid: u64, ordinal: u32) -> Option<(Hit, Exactly)> {
        if record.len() < RECORD_HEADER || u64_at(record, 0) != tid || u32_at(record, 16) != ordinal {
            return None;
        }
        let exactly = self.distance(&record[RECORD_HEADER..]);
        let span = Span {
            start: u32_at(record, 20),
            end: u32_at(record, 24),
        };
        Some((
            Hit {
                tid,
                distance: exactly.reported,
                ordinal,
                span,
                hash: u64_at(record, 8),
            },
            exactly,
        ))
    }

    fn distance(&self, vector: &[u8]) -> Exactly {
        match self.metric {
            Metric::L2 => {
                let squared = l2_squared(&self.query, vector, self.kind);
                Exactly {
                    reported: f64::from(squared).sqrt(),
                    bound: squared,
                }
            }
            Metric::InnerProduct => {
                let product = dot(&self.query, vector, self.kind);
                Exactly {
                    reported: -f64::from(product),
                    bound: -product,
                }
            }
            Metric::Cosine => {
                let sums = dot_and_norm(&self.query, vector, self.kind);
                let cosine = f64::from(sums.main) / (self.norm * f64::from(sums.norm).sqrt());
                // A query without a direction is at pgvector's NaN from everything; it bounds nothing.
                let cosine = cosine.clamp(-1.0, 1.0);
                Exactly {
                    reported: 1.0 - cosine,
                    bound: (2.0 * (1.0 - cosine)) as f32,
                }
            }
        }
    }
}

/// Puts a record together from its pieces; false if they are another entry's by now.
fn read_pieces<S: PageStore>(
    reader: &mut Reader<S>,
    layout: &Layout,
    first: Block,
    tid: u64,
    ordinal: u32,
    record: &mut Vec<u8>,
) -> Result<bool, IndexError> {
    record.clear();
    let mut block = first;
    for number in 0..layout.pieces {
        if block == NONE {
            return Ok(false);
        }
        let page = reader.read(block)?;
        match read_piece(&page, tid, ordinal, number as u16) {
            Some((next, bytes)) => {
                record.extend_from_slice(bytes);
                block = next;
            }
            None => return Ok(false),
        }
    }
    Ok(record.len() == layout.record)
}

/// Fails on an entry that the index cannot hold.
pub(super) fn check_entry(entry: &Entry<'_>, layout: &Layout, element: Element) -> Result<(), IndexError> {
    check(entry.vector, layout.dimensions)?;
    if entry.ordinal & FIRST != 0 {
        return Err(IndexError::Store(format!("ordinal {} is too large", entry.ordinal)));
    }
    let fits = |&x: &f32| half::f16::from_f32(x).is_finite();
    if element == Element::F16 && !entry.vector.iter().all(fits) {
        return Err(IndexError::NotFinite);
    }
    Ok(())
}

/// The vector of a record that is kept in f32.
pub(super) fn record_vector(record: &[u8]) -> Vec<f32> {
    let components = record[RECORD_HEADER.min(record.len())..].chunks_exact(4);
    components
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}
