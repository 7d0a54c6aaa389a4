//! The words that the index shares with its callers: what is put in, what comes out, what can be chosen.

use crate::text::Span;

/// A heap tuple's place, packed: block number << 16 | offset number.
pub type Tid = u64;

/// What nearness means. Reported distances are those of pgvector's operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Euclidean distance, not squared (`<->`).
    L2,
    /// Negative inner product (`<#>`).
    InnerProduct,
    /// One minus cosine similarity (`<=>`). Zero vectors are not indexed, as in pgvector.
    Cosine,
}

/// How the exact vector is kept for the re-rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// IEEE half precision: what pgvector's `halfvec` holds. Values beyond its range are refused.
    F16,
}

impl Element {
    /// Bytes of one stored component.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 => 2,
        }
    }
}

/// What is fixed when an index is created.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexOptions {
    pub metric: Metric,
    pub element: Element,
    /// Components of every vector, 1..=16,000.
    pub dimensions: u32,
    /// Number of inverted lists; 0 chooses it from the number of entries.
    pub lists: u32,
    /// Entries are chunks of documents: a scan returns a document (tid) once, at its best chunk.
    pub documents: bool,
    /// Fingerprint of the encoder that made the vectors.
    pub model: Option<String>,
    /// Kept in the meta pages for the caller, opaque to the index; at most [`IndexOptions::MAX_EXTRA`] bytes.
    pub extra: Vec<u8>,
}

impl IndexOptions {
    /// Most dimensions an index takes.
    pub const MAX_DIMENSIONS: u32 = 16_000;
    /// Most lists an index has.
    pub const MAX_LISTS: u32 = 65_536;
    /// Most bytes of [`IndexOptions::extra`] and of [`IndexOptions::model`] each.
    pub const MAX_EXTRA: usize = 64 * 1024;
}

/// One vector to be indexed.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub tid: Tid,
    /// Number of the chunk in its row, below 2^31; 0 where a row is one vector.
    pub ordinal: u32,
    /// Bytes of the chunk in the row's text.
    pub span: Span,
    /// Hash of the row's text, returned with the hit.
    pub hash: u64,
    /// As many components as the index has dimensions.
    pub vector: &'a [f32],
}

/// One answer of a scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    pub tid: Tid,
    /// Exact distance as the metric's operator reports it.
    pub distance: f64,
    pub ordinal: u32,
    pub span: Span,
    pub hash: u64,
}

/// Where a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Entries are taken in; the total is not known (0).
    Loading,
    /// Centroids are sought.
    Clustering,
    /// Entries are given to lists.
    Assigning,
    /// Pages are written.
    Writing,
}

/// Told where the build is: phase, units done, units in all (0 where not known).
pub type Progress = Box<dyn FnMut(Phase, u64, u64)>;

/// What a build did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BuildStats {
    /// Entries in the index.
    pub entries: u64,
    /// Rows (tids) with at least one entry.
    pub rows: u64,
    /// Entries left out: zero vectors under [`Metric::Cosine`].
    pub skipped: u64,
    pub lists: u32,
    /// Lists that a scan reads first.
    pub probes: u32,
    /// Recall@10 of the calibration's sample queries at those probes; 1.0 where everything is read.
    pub recall: f32,
    /// Pages written.
    pub pages: u32,
}

/// How a scan is to run.
#[derive(Clone, Copy, Debug)]
pub struct ScanParams {
    /// Lists read before the first hit; 0 takes the number calibrated at the build.
    pub probes: u32,
    /// Memory for candidates, in bytes.
    pub memory_bytes: usize,
    /// Recall@10 to aim at, by what the build measured on its own entries: lists and re-ranks are as many as reach it, and
    /// hits come out without proof. 1 proves every hit by the bounds as far as they tell.
    pub recall: f32,
    /// Compare every vector instead of following bounds: slow over a large index, exact over any.
    pub exact: bool,
}

impl Default for ScanParams {
    fn default() -> Self {
        ScanParams {
            probes: 0,
            memory_bytes: 4 << 20,
            recall: 1.0,
            exact: false,
        }
    }
}

/// What vacuum found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VacuumStats {
    /// Live entries that remain.
    pub entries: u64,
    /// Rows (distinct tids) among them.
    pub rows: u64,
    /// Entries removed by this call.
    pub removed: u64,
    /// Pages of the index.
    pub pages: u32,
    /// Pages that are free for reuse.
    pub free_pages: u32,
}
