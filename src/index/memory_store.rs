//! Pages in memory, for tests and measurements.
//!
//! The store asserts the locking rules of [`PageStore`]: no thread may hold a page or a change while it starts
//! another change, asks for a cancel check or sleeps; no more than [`MAX_CHANGE_PAGES`] pages a change; a page whose
//! used end (`pd_lower`) lies before bytes that are not zero is refused, as the server would drop them. Waiting for a
//! page for longer than ten seconds counts as a deadlock. It counts reads and can fail or cancel after a number of calls.

use super::IndexError;
use super::page;
use super::store::{Block, MAX_CHANGE_PAGES, PAGE_SIZE, PageBytes, PageChange, PageStore};
use parking_lot::{Condvar, Mutex, RwLock};
use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

thread_local! {
    static PAGES_HELD: Cell<usize> = const { Cell::new(0) };
    static CHANGES_HELD: Cell<usize> = const { Cell::new(0) };
}

struct Slot {
    bytes: RwLock<Arc<PageBytes>>,
    locked: Mutex<bool>,
    unlocked: Condvar,
}

impl Slot {
    fn new(bytes: PageBytes, locked: bool) -> Arc<Slot> {
        Arc::new(Slot {
            bytes: RwLock::new(Arc::new(bytes)),
            locked: Mutex::new(locked),
            unlocked: Condvar::new(),
        })
    }
}

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            bytes: RwLock::new(Arc::new([0; PAGE_SIZE])),
            locked: Mutex::default(),
            unlocked: Condvar::default(),
        }
    }
}

#[derive(Default)]
struct Inner {
    /// Its lock is the one on the whole.
    whole: Arc<Slot>,
    slots: RwLock<Vec<Arc<Slot>>>,
    free: Mutex<Vec<Block>>,
    reads: AtomicU64,
    bulk: AtomicBool,
    /// Pages were damaged on purpose: their holes are no longer checked.
    damaged: AtomicBool,
    /// Calls left until one fails; negative: never.
    fail_after: AtomicI64,
    cancel_after: AtomicI64,
}

/// A store in memory. Clones share their pages.
#[derive(Clone)]
pub struct MemoryStore(Arc<Inner>);

impl Default for MemoryStore {
    fn default() -> Self {
        let inner = Inner {
            fail_after: AtomicI64::new(-1),
            cancel_after: AtomicI64::new(-1),
            ..Inner::default()
        };
        MemoryStore(Arc::new(inner))
    }
}

/// A page as it was when it was read.
pub struct MemoryPage(Arc<PageBytes>);

impl Deref for MemoryPage {
    type Target = PageBytes;
    fn deref(&self) -> &PageBytes {
        &self.0
    }
}

impl Drop for MemoryPage {
    fn drop(&mut self) {
        PAGES_HELD.set(PAGES_HELD.get().saturating_sub(1));
    }
}

/// The lock on the whole.
pub struct MemoryWhole(Arc<Slot>);

impl Drop for MemoryWhole {
    fn drop(&mut self) {
        *self.0.locked.lock() = false;
        self.0.unlocked.notify_all();
    }
}

/// Pages that are being changed.
pub struct MemoryChange {
    store: MemoryStore,
    pages: Vec<(Block, Arc<Slot>, Box<PageBytes>)>,
}

fn count_down(counter: &AtomicI64) -> bool {
    counter.load(Relaxed) >= 0 && counter.fetch_sub(1, Relaxed) == 0
}

fn assert_free(what: &str) {
    assert_eq!(CHANGES_HELD.get(), 0, "{what} while a change is open");
    assert_eq!(PAGES_HELD.get(), 0, "{what} while a page is held");
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// Pages read so far.
    pub fn reads(&self) -> u64 {
        self.0.reads.load(Relaxed)
    }

    /// Makes the call that comes `calls` reads or changes from now fail, and every later one work.
    pub fn fail_after(&self, calls: u32) {
        self.0.fail_after.store(calls.into(), Relaxed);
    }

    /// Makes the cancel check that comes `checks` checks from now report a cancel.
    pub fn cancel_after(&self, checks: u32) {
        self.0.cancel_after.store(checks.into(), Relaxed);
    }

    /// Changes a page's bytes behind the index's back.
    pub fn corrupt(&self, block: Block, damage: impl FnOnce(&mut PageBytes)) {
        self.0.damaged.store(true, Relaxed);
        if let Some(slot) = self.0.slots.read().get(block as usize) {
            let mut bytes = slot.bytes.write();
            damage(Arc::make_mut(&mut bytes));
        }
    }

    /// A copy of all pages in a store of its own.
    pub fn snapshot(&self) -> MemoryStore {
        let copy = MemoryStore::new();
        let slots = self.0.slots.read();
        *copy.0.slots.write() = slots.iter().map(|slot| Slot::new(**slot.bytes.read(), false)).collect();
        *copy.0.free.lock() = self.0.free.lock().clone();
        copy
    }

    fn maybe_fail(&self) -> Result<(), IndexError> {
        if count_down(&self.0.fail_after) {
            Err(IndexError::Store("injected failure".into()))
        } else {
            Ok(())
        }
    }

    fn slot(&self, block: Block) -> Result<Arc<Slot>, IndexError> {
        let slots = self.0.slots.read();
        let slot = slots.get(block as usize).cloned();
        slot.ok_or_else(|| IndexError::Store(format!("block {block} does not exist ({} blocks)", slots.len())))
    }
}

fn check_page(block: Block, bytes: &PageBytes) {
    let lower = usize::from(page::u16_at(bytes, 12));
    assert_eq!(page::u16_at(bytes, 14) as usize, PAGE_SIZE, "block {block}: pd_upper");
    assert_eq!(
        page::u16_at(bytes, 18),
        PAGE_SIZE as u16 | 4,
        "block {block}: page size"
    );
    assert!(
        bytes[lower..].iter().all(|&b| b == 0),
        "block {block}: bytes behind pd_lower {lower}"
    );
}

impl PageStore for MemoryStore {
    type Page = MemoryPage;
    type Change = MemoryChange;
    type Whole = MemoryWhole;

    fn lock_whole(&self) -> Result<MemoryWhole, IndexError> {
        assert_free("the whole is locked");
        self.maybe_fail()?;
        let slot = self.0.whole.clone();
        let mut locked = slot.locked.lock();
        while *locked {
            let timeout = slot.unlocked.wait_for(&mut locked, Duration::from_secs(10));
            assert!(!timeout.timed_out(), "deadlock on the whole");
        }
        *locked = true;
        drop(locked);
        Ok(MemoryWhole(slot))
    }

    fn blocks(&self) -> Result<Block, IndexError> {
        Ok(self.0.slots.read().len() as Block)
    }

    fn read(&self, block: Block) -> Result<MemoryPage, IndexError> {
        assert_eq!(CHANGES_HELD.get(), 0, "read of block {block} while a change is open");
        self.maybe_fail()?;
        self.0.reads.fetch_add(1, Relaxed);
        let slots = self.0.slots.read();
        let Some(slot) = slots.get(block as usize) else {
            return Err(IndexError::Store(format!(
                "block {block} does not exist ({} blocks)",
                slots.len()
            )));
        };
        let bytes = slot.bytes.read().clone();
        PAGES_HELD.set(PAGES_HELD.get() + 1);
        Ok(MemoryPage(bytes))
    }

    fn change(&self) -> Result<MemoryChange, IndexError> {
        assert_free("a change is started");
        self.maybe_fail()?;
        CHANGES_HELD.set(1);
        Ok(MemoryChange {
            store: self.clone(),
            pages: Vec::new(),
        })
    }

    fn take_free(&self) -> Result<Option<Block>, IndexError> {
        Ok(self.0.free.lock().pop())
    }

    fn release(&self, block: Block) -> Result<(), IndexError> {
        assert_free("a page is released");
        let mut free = self.0.free.lock();
        if !free.contains(&block) {
            free.push(block);
        }
        Ok(())
    }

    fn append_bulk(&self, bytes: &PageBytes) -> Result<Block, IndexError> {
        self.maybe_fail()?;
        self.0.bulk.store(true, Relaxed);
        let mut slots = self.0.slots.write();
        check_page(slots.len() as Block, bytes);
        slots.push(Slot::new(*bytes, false));
        Ok(slots.len() as Block - 1)
    }

    fn overwrite_bulk(&self, block: Block, bytes: &PageBytes) -> Result<(), IndexError> {
        assert!(self.0.bulk.load(Relaxed), "overwrite_bulk outside a build");
        check_page(block, bytes);
        *self.slot(block)?.bytes.write() = Arc::new(*bytes);
        Ok(())
    }

    fn finish_bulk(&self) -> Result<(), IndexError> {
        self.0.bulk.store(false, Relaxed);
        self.maybe_fail()
    }

    fn check_cancel(&self) -> Result<(), IndexError> {
        assert_free("a cancel check");
        if count_down(&self.0.cancel_after) {
            Err(IndexError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn vacuum_delay(&self) {
        assert_free("a vacuum delay");
    }
}

impl MemoryChange {
    fn find(&mut self, block: Block, wait: bool) -> Result<Option<usize>, IndexError> {
        assert_eq!(
            PAGES_HELD.get(),
            0,
            "block {block} is asked for in a change while a page is held"
        );
        if let Some(at) = self.pages.iter().position(|(b, _, _)| *b == block) {
            return Ok(Some(at));
        }
        self.store.maybe_fail()?;
        assert!(
            self.pages.len() < MAX_CHANGE_PAGES,
            "more than {MAX_CHANGE_PAGES} pages in a change"
        );
        let slot = self.store.slot(block)?;
        let mut locked = slot.locked.lock();
        while *locked {
            if !wait {
                return Ok(None);
            }
            let timeout = slot.unlocked.wait_for(&mut locked, Duration::from_secs(10));
            assert!(!timeout.timed_out(), "deadlock on block {block}");
        }
        *locked = true;
        drop(locked);
        let bytes = Box::new(**slot.bytes.read());
        self.pages.push((block, slot, bytes));
        Ok(Some(self.pages.len() - 1))
    }
}

impl PageChange for MemoryChange {
    fn page(&mut self, block: Block) -> Result<&mut PageBytes, IndexError> {
        match self.find(block, true)? {
            Some(at) => Ok(&mut self.pages[at].2),
            None => Err(IndexError::Store(format!("block {block} is locked"))),
        }
    }

    fn renew(&mut self, block: Block) -> Result<&mut PageBytes, IndexError> {
        self.page(block)
    }

    fn try_renew(&mut self, block: Block) -> Result<Option<&mut PageBytes>, IndexError> {
        Ok(self.find(block, false)?.map(|at| &mut *self.pages[at].2))
    }

    fn extend(&mut self) -> Result<(Block, &mut PageBytes), IndexError> {
        self.store.maybe_fail()?;
        assert!(
            self.pages.len() < MAX_CHANGE_PAGES,
            "more than {MAX_CHANGE_PAGES} pages in a change"
        );
        let slot = Slot::new(page::new_page(), true);
        let mut slots = self.store.0.slots.write();
        let block = slots.len() as Block;
        slots.push(slot.clone());
        drop(slots);
        let at = self.pages.len();
        self.pages.push((block, slot, Box::new(page::new_page())));
        Ok((block, &mut self.pages[at].2))
    }

    fn commit(mut self) -> Result<(), IndexError> {
        self.store.maybe_fail()?;
        for (block, slot, bytes) in &mut self.pages {
            if !self.store.0.damaged.load(Relaxed) {
                check_page(*block, bytes);
            }
            *slot.bytes.write() = Arc::new(**bytes);
        }
        Ok(())
    }
}

impl Drop for MemoryChange {
    fn drop(&mut self) {
        CHANGES_HELD.set(0);
        for (_, slot, _) in &self.pages {
            *slot.locked.lock() = false;
            slot.unlocked.notify_all();
        }
    }
}
