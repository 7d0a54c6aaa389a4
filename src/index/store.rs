//! Where pages live: the wall between the index and the server.
//!
//! The index reads and changes pages only through [`PageStore`]. On a server the store is the buffer manager and
//! GenericXLog (`pg/store.rs`); in tests it is a vector of pages in memory. A page is 8 kB, begins with PostgreSQL's
//! own 24-byte header (the store initialises it) and gives the index the bytes from [`CONTENT_START`] on.
//!
//! Locking rules: a [`PageStore::Page`] holds a pin and a shared lock until it is dropped; never hold one while
//! asking for a change of the same block. A [`PageStore::Change`] locks its pages exclusively in the order in which
//! they are asked for and makes them durable together; it holds at most [`MAX_CHANGE_PAGES`] pages. Code that locks
//! several pages takes them in an order that is fixed for the whole index (written at the head of the file that does so).

use super::IndexError;
use std::ops::Deref;

/// Bytes of a page, header included.
pub const PAGE_SIZE: usize = 8192;
/// First byte that belongs to the index; the bytes before it are PostgreSQL's page header.
pub const CONTENT_START: usize = 24;
/// Bytes of a page that belong to the index.
pub const CONTENT_SIZE: usize = PAGE_SIZE - CONTENT_START;
/// Pages one change may hold: GenericXLog's limit.
pub const MAX_CHANGE_PAGES: usize = 4;

/// Number of a page in the index, from 0.
pub type Block = u32;

/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// Pages that can be read, and changed atomically in small groups.
///
/// Implementations are cheap handles: the index clones them freely.
pub trait PageStore: Clone {
    /// A page that is pinned and locked for reading.
    type Page: Deref<Target = PageBytes>;
    /// A set of pages that are locked for writing and become durable together.
    type Change: PageChange;
    /// The right to decide what the index is, held until it is dropped.
    type Whole;

    /// Waits until nobody else holds the right to decide the index ([`super::decide`]). Never called under a page lock.
    fn lock_whole(&self) -> Result<Self::Whole, IndexError>;

    /// Number of blocks now.
    fn blocks(&self) -> Result<Block, IndexError>;

    /// Pins and share-locks `block`.
    fn read(&self, block: Block) -> Result<Self::Page, IndexError>;

    /// Starts a change.
    fn change(&self) -> Result<Self::Change, IndexError>;

    /// Hints that these blocks are read soon. May do nothing.
    fn prefetch(&self, _blocks: &[Block]) {}

    /// A block that [`PageStore::release`] recorded as free, if any. The caller must check that it is still free
    /// (the index marks free pages in their content) after locking it.
    fn take_free(&self) -> Result<Option<Block>, IndexError>;

    /// Records `block` as free.
    fn release(&self, block: Block) -> Result<(), IndexError>;

    /// Appends pages at the end of an index that nobody else can see yet (a build): no lock, no WAL record a page;
    /// [`PageStore::finish_bulk`] makes everything durable.
    fn append_bulk(&self, page: &PageBytes) -> Result<Block, IndexError>;

    /// Overwrites a page that was written by [`PageStore::append_bulk`] in the same build.
    fn overwrite_bulk(&self, block: Block, page: &PageBytes) -> Result<(), IndexError>;

    /// Ends a build: all pages are WAL-logged (where the relation is logged).
    fn finish_bulk(&self) -> Result<(), IndexError>;

    /// Fails if the statement was cancelled. Called at least every few milliseconds of work, never under a page lock.
    fn check_cancel(&self) -> Result<(), IndexError>;

    /// Sleeps if a cost-based vacuum delay is due. Never called under a page lock.
    fn vacuum_delay(&self) {}
}

/// Pages locked for writing, made durable together by [`PageChange::commit`]; dropped without it, nothing happens.
pub trait PageChange {
    /// Locks `block` and gives its bytes. Asking twice for one block gives the same bytes.
    fn page(&mut self, block: Block) -> Result<&mut PageBytes, IndexError>;

    /// Like [`PageChange::page`], for a page whose whole content is replaced: it is logged whole, so that what it was
    /// before does not matter to recovery. A page may lie in the file as zeros of which the log knows nothing (it was
    /// added by a change that never became durable), and a difference to such a page cannot be replayed.
    fn renew(&mut self, block: Block) -> Result<&mut PageBytes, IndexError>;

    /// Like [`PageChange::renew`], but `None` at once if another backend holds the lock.
    fn try_renew(&mut self, block: Block) -> Result<Option<&mut PageBytes>, IndexError>;

    /// Adds an empty page (header initialised, content zero) at the end of the relation.
    fn extend(&mut self) -> Result<(Block, &mut PageBytes), IndexError>;

    /// Makes the change durable and releases the locks.
    fn commit(self) -> Result<(), IndexError>;
}
