//! What a backend keeps of what it read: values by key, at most so many, of which the one that was not used for longest
//! makes room.
//!
//! What was read of relations is kept until one of them changes. The server tells every backend of a change when it
//! commits, and the one that makes it at once; statement triggers on the extension's tables see to it that a change of
//! rows is told as well ([`tell`]). One callback counts the changes of the relations that something was read of, and a
//! value is good as long as the counts are those from before it was read, so a change amid reading is not missed.

use pgrx::{pg_guard, pg_sys};
use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Once;

/// Relations whose changes are counted at most; beyond, everything counts as changed once.
const MOST_RELATIONS: usize = 8192;

/// Changes that this backend has heard of.
#[derive(Default)]
struct Changes {
    /// Of everything at once.
    all: u64,
    of: HashMap<pg_sys::Oid, u64>,
}

thread_local! {
    static CHANGES: RefCell<Changes> = RefCell::default();
}

#[pg_guard]
unsafe extern "C-unwind" fn on_invalidation(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    CHANGES.with_borrow_mut(|changes| match relation {
        pg_sys::InvalidOid => changes.all += 1,
        relation => {
            if let Some(count) = changes.of.get_mut(&relation) {
                *count += 1;
            }
        }
    });
}

/// Has every backend read again what it read of a table: for the statement trigger on it.
pub fn tell(relation: Option<pg_sys::Oid>) {
    if let Some(relation) = relation {
        // SAFETY: a relation that exists.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
    }
}

/// The state of relations, taken before something is read of them.
#[derive(Clone, Debug, Default)]
pub struct ReadOf {
    all: u64,
    of: Vec<(pg_sys::Oid, u64)>,
}

impl ReadOf {
    /// Of nothing that changes: the key says what the value is.
    pub fn nothing() -> ReadOf {
        ReadOf::default()
    }

    /// Of these relations, as they are now.
    pub fn now(relations: &[pg_sys::Oid]) -> ReadOf {
        static REGISTERED: Once = Once::new();
        // SAFETY: the callback lives as long as the library.
        REGISTERED.call_once(|| unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(on_invalidation), pg_sys::Datum::from(0));
        });
        CHANGES.with_borrow_mut(|changes| {
            if changes.of.len() >= MOST_RELATIONS {
                changes.of.clear();
                changes.all += 1;
            }
            let count = |relation: &pg_sys::Oid| (*relation, *changes.of.entry(*relation).or_default());
            let of = relations.iter().map(count).collect();
            ReadOf { all: changes.all, of }
        })
    }

    /// Whether none of them has changed since.
    fn holds(&self) -> bool {
        let same = |changes: &Changes| {
            let unchanged = |(relation, count): &(pg_sys::Oid, u64)| changes.of.get(relation) == Some(count);
            changes.all == self.all && self.of.iter().all(unchanged)
        };
        self.of.is_empty() || CHANGES.with_borrow(same)
    }
}

struct Entry<V> {
    value: V,
    read_of: ReadOf,
    used: u64,
}

struct Entries<K, V> {
    by_key: HashMap<K, Entry<V>>,
    /// Counts uses.
    clock: u64,
}

/// Values by key, for one backend.
pub struct Cache<K, V> {
    most: usize,
    entries: RefCell<Entries<K, V>>,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// An empty cache of at most `most` values.
    pub fn new(most: usize) -> Cache<K, V> {
        Cache {
            most,
            entries: RefCell::new(Entries {
                by_key: HashMap::new(),
                clock: 0,
            }),
        }
    }

    /// The value of a key, while it is good.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut entries = self.entries.borrow_mut();
        entries.clock += 1;
        let now = entries.clock;
        match entries.by_key.get_mut(key) {
            Some(entry) if entry.read_of.holds() => {
                entry.used = now;
                Some(entry.value.clone())
            }
            Some(_) => {
                entries.by_key.remove(key);
                None
            }
            None => None,
        }
    }

    /// Keeps a value; `read_of` was taken before it was read.
    pub fn keep(&self, key: K, value: V, read_of: ReadOf) {
        let mut entries = self.entries.borrow_mut();
        entries.clock += 1;
        let used = entries.clock;
        if entries.by_key.len() >= self.most && !entries.by_key.contains_key(&key) {
            let oldest = entries.by_key.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                entries.by_key.remove(&oldest);
            }
        }
        let entry = Entry { value, read_of, used };
        entries.by_key.insert(key, entry);
    }

    /// The value of a key that says what the value is (a hash of what is read, say); `read` makes one that is not
    /// there.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn get_or<E>(&self, key: &K, read: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        let value = read()?;
        self.keep(key.clone(), value.clone(), ReadOf::nothing());
        Ok(value)
    }
}
