//! Pages of a relation: [`PageStore`] over the buffer manager and GenericXLog.
//!
//! Locking: a page that is read holds a pin and a shared content lock; a change takes exclusive content locks in the
//! order in which its pages are asked for, and keeps them until it is committed or dropped. New pages come from the
//! relation's extension lock, one at a time.
//!
//! Errors: a server ERROR inside a call here unwinds as a panic up to the nearest guard. The guards of this file do
//! nothing while unwinding: locks and pins then belong to the transaction's abort, which has already reset the
//! counters that an ordinary release would touch.

use crate::index::IndexError;
use crate::index::store::{Block, PAGE_SIZE, PageBytes, PageChange, PageStore};
use pgrx::pg_sys;
use std::ops::Deref;

/// The header's InvalidSubTransactionId.
const INVALID_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

/// The pages of one fork of an index relation. The relation must stay open while the store or anything made from it
/// is in use.
#[derive(Clone, Copy)]
pub struct RelationStore {
    relation: pg_sys::Relation,
    fork: pg_sys::ForkNumber::Type,
}

impl RelationStore {
    /// The main fork of `relation`.
    ///
    /// # Safety
    /// `relation` must be an open index relation that outlives the store.
    pub unsafe fn new(relation: pg_sys::Relation) -> RelationStore {
        RelationStore {
            relation,
            fork: pg_sys::ForkNumber::MAIN_FORKNUM,
        }
    }

    /// The init fork of an unlogged `relation`.
    ///
    /// # Safety
    /// As for [`RelationStore::new`].
    pub unsafe fn init_fork(relation: pg_sys::Relation) -> RelationStore {
        RelationStore {
            relation,
            fork: pg_sys::ForkNumber::INIT_FORKNUM,
        }
    }

    /// Whether this is the fork that the server reads and writes.
    pub fn is_main(&self) -> bool {
        self.fork == pg_sys::ForkNumber::MAIN_FORKNUM
    }

    fn manager_relation(&self) -> pg_sys::BufferManagerRelation {
        // What the header's BMR_REL macro makes.
        pg_sys::BufferManagerRelation {
            rel: self.relation,
            ..Default::default()
        }
    }

    /// Whether changes of this fork are written to the WAL (the header's RelationNeedsWAL, and always for an init
    /// fork, which is what crash recovery copies from).
    fn needs_wal(&self) -> bool {
        if self.fork == pg_sys::ForkNumber::INIT_FORKNUM {
            return true;
        }
        // SAFETY: the relation is open, so its relcache entry and pg_class row are valid.
        unsafe {
            let relation = &*self.relation;
            let permanent = (*relation.rd_rel).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as std::ffi::c_char;
            let replicated = pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32;
            let new_storage = relation.rd_createSubid != INVALID_SUBTRANSACTION
                || relation.rd_firstRelfilelocatorSubid != INVALID_SUBTRANSACTION;
            permanent && (replicated || !new_storage)
        }
    }
}

/// A pinned page under a shared content lock.
pub struct ReadPage {
    buffer: pg_sys::Buffer,
    bytes: *const PageBytes,
}

impl Deref for ReadPage {
    type Target = PageBytes;

    fn deref(&self) -> &PageBytes {
        // SAFETY: the buffer is pinned and share-locked until drop, and a buffer is PAGE_SIZE bytes.
        unsafe { &*self.bytes }
    }
}

impl Drop for ReadPage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: this guard holds the pin and the lock.
            unsafe { pg_sys::UnlockReleaseBuffer(self.buffer) }
        }
    }
}

/// What a change writes to the log of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Logged {
    /// What differs from the page as it was.
    Difference,
    /// The page as it becomes.
    Whole,
    /// The same, of a page that begins empty.
    New,
}

/// The server's lock on page 0 as a lock of its own, apart from that of its buffer.
pub struct WholeLock {
    relation: pg_sys::Relation,
}

impl Drop for WholeLock {
    fn drop(&mut self) {
        // While unwinding from a server error the lock belongs to the transaction's abort.
        if !std::thread::panicking() {
            // SAFETY: the relation is open, and this guard holds the lock.
            unsafe { pg_sys::UnlockPage(self.relation, 0, pg_sys::ExclusiveLock as pg_sys::LOCKMODE) }
        }
    }
}

struct ChangedPage {
    block: Block,
    buffer: pg_sys::Buffer,
    bytes: *mut PageBytes,
}

/// Up to four pages under exclusive locks, logged in one record.
pub struct RelationChange {
    store: RelationStore,
    state: *mut pg_sys::GenericXLogState,
    pages: Vec<ChangedPage>,
}

impl RelationChange {
    fn register(&mut self, block: Block, buffer: pg_sys::Buffer, logged: Logged) -> &mut PageBytes {
        let flags = match logged {
            Logged::Difference => 0,
            Logged::Whole | Logged::New => pg_sys::GENERIC_XLOG_FULL_IMAGE as i32,
        };
        // SAFETY: the buffer is locked exclusively; the image that comes back lives until the record is finished or
        // aborted, which only `commit` and `drop` do.
        let page = unsafe {
            let page = pg_sys::GenericXLogRegisterBuffer(self.state, buffer, flags);
            if logged == Logged::New {
                pg_sys::PageInit(page, PAGE_SIZE, 0);
            }
            page.cast::<PageBytes>()
        };
        self.pages.push(ChangedPage {
            block,
            buffer,
            bytes: page,
        });
        // SAFETY: as above; the borrow of self keeps it unique.
        unsafe { &mut *page }
    }

    fn known(&self, block: Block) -> Option<*mut PageBytes> {
        self.pages
            .iter()
            .find(|page| page.block == block)
            .map(|page| page.bytes)
    }

    fn pin(&self, block: Block) -> pg_sys::Buffer {
        // SAFETY: the relation is open.
        unsafe {
            pg_sys::ReadBufferExtended(
                self.store.relation,
                self.store.fork,
                block,
                pg_sys::ReadBufferMode::RBM_NORMAL,
                std::ptr::null_mut(),
            )
        }
    }

    fn room(&self) -> Result<(), IndexError> {
        if self.pages.len() >= crate::index::store::MAX_CHANGE_PAGES {
            return Err(IndexError::Store("a change holds four pages at most".into()));
        }
        Ok(())
    }
}

impl PageChange for RelationChange {
    fn page(&mut self, block: Block) -> Result<&mut PageBytes, IndexError> {
        if let Some(bytes) = self.known(block) {
            // SAFETY: an image of this change, alive as long as the change.
            return Ok(unsafe { &mut *bytes });
        }
        self.room()?;
        let buffer = self.pin(block);
        // SAFETY: pinned just now.
        unsafe { pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32) };
        Ok(self.register(block, buffer, Logged::Difference))
    }

    fn renew(&mut self, block: Block) -> Result<&mut PageBytes, IndexError> {
        if let Some(bytes) = self.known(block) {
            // SAFETY: an image of this change, alive as long as the change.
            return Ok(unsafe { &mut *bytes });
        }
        self.room()?;
        let buffer = self.pin(block);
        // SAFETY: pinned just now.
        unsafe { pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32) };
        Ok(self.register(block, buffer, Logged::Whole))
    }

    fn try_renew(&mut self, block: Block) -> Result<Option<&mut PageBytes>, IndexError> {
        if let Some(bytes) = self.known(block) {
            // SAFETY: an image of this change, alive as long as the change.
            return Ok(Some(unsafe { &mut *bytes }));
        }
        self.room()?;
        let buffer = self.pin(block);
        // SAFETY: pinned just now; the pin is given back where the lock is not had.
        unsafe {
            if !pg_sys::ConditionalLockBuffer(buffer) {
                pg_sys::ReleaseBuffer(buffer);
                return Ok(None);
            }
        }
        Ok(Some(self.register(block, buffer, Logged::Whole)))
    }

    fn extend(&mut self) -> Result<(Block, &mut PageBytes), IndexError> {
        self.room()?;
        // SAFETY: the relation is open; the buffer comes back pinned and locked exclusively.
        let (buffer, block) = unsafe {
            let buffer = pg_sys::ExtendBufferedRel(
                self.store.manager_relation(),
                self.store.fork,
                std::ptr::null_mut(),
                pg_sys::ExtendBufferedFlags::EB_LOCK_FIRST,
            );
            (buffer, pg_sys::BufferGetBlockNumber(buffer))
        };
        Ok((block, self.register(block, buffer, Logged::New)))
    }

    fn commit(mut self) -> Result<(), IndexError> {
        let state = std::mem::replace(&mut self.state, std::ptr::null_mut());
        // SAFETY: every registered buffer is still pinned and locked. The record is finished before the locks go.
        unsafe {
            pg_sys::GenericXLogFinish(state);
            for page in self.pages.drain(..) {
                pg_sys::UnlockReleaseBuffer(page.buffer);
            }
        }
        Ok(())
    }
}

impl Drop for RelationChange {
    fn drop(&mut self) {
        if std::thread::panicking() || self.state.is_null() {
            return;
        }
        // SAFETY: not finished, so the record can be aborted; the buffers are still pinned and locked.
        unsafe {
            pg_sys::GenericXLogAbort(self.state);
            for page in self.pages.drain(..) {
                pg_sys::UnlockReleaseBuffer(page.buffer);
            }
        }
    }
}

impl PageStore for RelationStore {
    type Page = ReadPage;
    type Change = RelationChange;
    type Whole = WholeLock;

    fn lock_whole(&self) -> Result<WholeLock, IndexError> {
        // SAFETY: the relation is open. A wait for the lock can be cancelled.
        unsafe { pg_sys::LockPage(self.relation, 0, pg_sys::ExclusiveLock as pg_sys::LOCKMODE) };
        Ok(WholeLock {
            relation: self.relation,
        })
    }

    fn blocks(&self) -> Result<Block, IndexError> {
        // SAFETY: the relation is open.
        Ok(unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, self.fork) })
    }

    fn read(&self, block: Block) -> Result<ReadPage, IndexError> {
        // SAFETY: the relation is open; the buffer is pinned before it is locked, and both go with the guard.
        unsafe {
            let buffer = pg_sys::ReadBufferExtended(
                self.relation,
                self.fork,
                block,
                pg_sys::ReadBufferMode::RBM_NORMAL,
                std::ptr::null_mut(),
            );
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            Ok(ReadPage {
                buffer,
                bytes: pg_sys::BufferGetPage(buffer).cast(),
            })
        }
    }

    fn change(&self) -> Result<RelationChange, IndexError> {
        // SAFETY: the relation is open.
        let state = unsafe { pg_sys::GenericXLogStart(self.relation) };
        Ok(RelationChange {
            store: *self,
            state,
            pages: Vec::with_capacity(2),
        })
    }

    fn prefetch(&self, blocks: &[Block]) {
        for &block in blocks {
            // SAFETY: the relation is open; a block past the end is only a wasted hint.
            unsafe { pg_sys::PrefetchBuffer(self.relation, self.fork, block) };
        }
    }

    fn take_free(&self) -> Result<Option<Block>, IndexError> {
        // SAFETY: the relation is open.
        let block = unsafe { pg_sys::GetFreeIndexPage(self.relation) };
        Ok((block != pg_sys::InvalidBlockNumber).then_some(block))
    }

    fn release(&self, block: Block) -> Result<(), IndexError> {
        // SAFETY: the relation is open.
        unsafe { pg_sys::RecordFreeIndexPage(self.relation, block) };
        Ok(())
    }

    fn append_bulk(&self, page: &PageBytes) -> Result<Block, IndexError> {
        // SAFETY: the relation is open; the new buffer is pinned and locked while its bytes are written.
        unsafe {
            let buffer = pg_sys::ExtendBufferedRel(
                self.manager_relation(),
                self.fork,
                std::ptr::null_mut(),
                pg_sys::ExtendBufferedFlags::EB_LOCK_FIRST | pg_sys::ExtendBufferedFlags::EB_SKIP_EXTENSION_LOCK,
            );
            let block = pg_sys::BufferGetBlockNumber(buffer);
            std::ptr::copy_nonoverlapping(page.as_ptr(), pg_sys::BufferGetPage(buffer).cast::<u8>(), PAGE_SIZE);
            pg_sys::MarkBufferDirty(buffer);
            pg_sys::UnlockReleaseBuffer(buffer);
            Ok(block)
        }
    }

    fn overwrite_bulk(&self, block: Block, page: &PageBytes) -> Result<(), IndexError> {
        // SAFETY: the relation is open; the buffer is pinned and locked while its bytes are written. The pages are
        // logged whole at the end of the build.
        unsafe {
            let buffer = pg_sys::ReadBufferExtended(
                self.relation,
                self.fork,
                block,
                pg_sys::ReadBufferMode::RBM_NORMAL,
                std::ptr::null_mut(),
            );
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
            std::ptr::copy_nonoverlapping(page.as_ptr(), pg_sys::BufferGetPage(buffer).cast::<u8>(), PAGE_SIZE);
            pg_sys::MarkBufferDirty(buffer);
            pg_sys::UnlockReleaseBuffer(buffer);
        }
        Ok(())
    }

    fn finish_bulk(&self) -> Result<(), IndexError> {
        if self.needs_wal() {
            let blocks = self.blocks()?;
            // SAFETY: the relation is open and nobody else writes to it during its build.
            unsafe { pg_sys::log_newpage_range(self.relation, self.fork, 0, blocks, true) };
        }
        Ok(())
    }

    fn check_cancel(&self) -> Result<(), IndexError> {
        pgrx::check_for_interrupts!();
        Ok(())
    }

    fn vacuum_delay(&self) {
        // SAFETY: called without page locks, as the trait demands.
        unsafe {
            #[cfg(feature = "pg18")]
            pg_sys::vacuum_delay_point(false);
            #[cfg(not(feature = "pg18"))]
            pg_sys::vacuum_delay_point();
        }
    }
}
