//! Places of trainers in shared memory: which job of which database is trained by which process.
//!
//! A place is `FREE`, `STARTING` (claimed by the backend that starts the trainer) or `RUNNING` (taken by the trainer,
//! which frees it on its way out). Every change happens under one lightweight lock, for some instructions; nothing
//! raises an error or waits while it is held. What follows from that:
//!
//! - There are never more trainers than `situ.max_trainings`, and never two of one job: the place is claimed before the
//!   server is asked for a process.
//! - A process that has a place is alive and is the trainer of that job, because its own exit has to wait for the lock.
//!   So a signal that is sent under the lock reaches the right process, however numbers of processes are used again.
//! - A trainer that is killed takes the server through crash recovery, which makes the memory anew.
//! - A claim carries a token, which the trainer is told. One that no trainer has taken is free again after a minute
//!   (its backend may be gone), and a trainer that comes later than that finds its token void and ends.

use crate::pg::settings::{self, MOST_TRAININGS};
use pgrx::{pg_guard, pg_sys};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Microseconds after which a claim that no trainer has taken is void.
const STALE: i64 = 60_000_000;

const FREE: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;

const TRANCHE: &std::ffi::CStr = c"SituTraining";

/// Zeroed bytes are a free place.
#[repr(C)]
struct Place {
    state: u32,
    database: u32,
    job: i64,
    token: u64,
    /// When it was claimed, in microseconds of the server's clock.
    since: i64,
    /// The trainer, once it runs.
    pid: i32,
    /// Not 0 where it was cancelled before that.
    cancelled: u32,
}

#[repr(C)]
struct Area {
    next_token: u64,
    places: [Place; MOST_TRAININGS],
}

static AREA: AtomicPtr<Area> = AtomicPtr::new(std::ptr::null_mut());
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Asks for the shared memory. In `_PG_init`, while the postmaster loads its libraries.
pub fn request() {
    // SAFETY: the postmaster has one thread; hooks are chained as every library does.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(on_request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(on_startup);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_request() {
    // SAFETY: called by the server in its hook.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Area>() + 128);
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_startup() {
    // SAFETY: called by the server in its hook, in the postmaster, before any other process can see the memory. The
    // area is aligned to a cache line by the server; zeroed bytes are valid values of every field.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let mut found = false;
        let area = pg_sys::ShmemInitStruct(c"situ trainings".as_ptr(), size_of::<Area>(), &mut found);
        if !found {
            std::ptr::write_bytes(area.cast::<u8>(), 0, size_of::<Area>());
        }
        AREA.store(area.cast(), Ordering::Release);
        let padded = pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr());
        LOCK.store(padded.cast(), Ordering::Release);
    }
}

/// Does something with the places under their lock; `None` where the library was not preloaded. `work` neither raises
/// nor waits.
fn locked<T>(work: impl FnOnce(&mut Area) -> T) -> Option<T> {
    let (area, lock) = (AREA.load(Ordering::Acquire), LOCK.load(Ordering::Acquire));
    if area.is_null() || lock.is_null() {
        return None;
    }
    // SAFETY: both point to shared memory that stays mapped until the process ends. The lock makes the reference the
    // only one; the server holds interrupts off while it is held.
    unsafe {
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let result = work(&mut *area);
        pg_sys::LWLockRelease(lock);
        Some(result)
    }
}

fn now() -> i64 {
    // SAFETY: no preconditions.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

fn my_database() -> u32 {
    // SAFETY: a number of this process.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

fn my_pid() -> i32 {
    // SAFETY: a number of this process.
    unsafe { pg_sys::MyProcPid }
}

impl Area {
    /// Frees claims that no trainer has taken in time.
    fn tidy(&mut self) {
        let now = now();
        for place in &mut self.places {
            if place.state == STARTING && now.saturating_sub(place.since) > STALE {
                place.state = FREE;
            }
        }
    }

    fn of(&self, database: u32, job: i64) -> Option<&Place> {
        let mut places = self.places.iter();
        places.find(|place| place.state != FREE && place.database == database && place.job == job)
    }

    fn taken(&self) -> usize {
        self.places.iter().filter(|place| place.state != FREE).count()
    }
}

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The place is the caller's; the trainer is to be told the token.
    Claimed(u64),
    /// The job has a trainer: its process, 0 while that starts.
    Runs(i32),
    /// So many trainings as the setting allows have trainers.
    Full(usize),
    /// The library was not preloaded.
    NoMemory,
}

/// Claims a place for a job of this database.
pub fn claim(job: i64) -> Claim {
    let (database, limit) = (my_database(), settings::max_trainings().min(MOST_TRAININGS));
    let claimed = locked(|area| {
        area.tidy();
        if let Some(place) = area.of(database, job) {
            return Claim::Runs(place.pid);
        }
        if area.taken() >= limit {
            return Claim::Full(limit);
        }
        area.next_token += 1;
        let token = area.next_token;
        let Some(place) = area.places.iter_mut().find(|place| place.state == FREE) else {
            return Claim::Full(limit);
        };
        *place = Place {
            state: STARTING,
            database,
            job,
            token,
            since: now(),
            pid: 0,
            cancelled: 0,
        };
        Claim::Claimed(token)
    });
    claimed.unwrap_or(Claim::NoMemory)
}

/// Whether there are places: whether the library was preloaded.
pub fn exist() -> bool {
    !AREA.load(Ordering::Acquire).is_null()
}

/// The setting where it leaves no place for a further training.
pub fn full() -> Option<usize> {
    let limit = settings::max_trainings().min(MOST_TRAININGS);
    locked(|area| {
        area.tidy();
        (area.taken() >= limit).then_some(limit)
    })
    .flatten()
}

/// Gives up a claim that no trainer has taken.
pub fn release(token: u64) {
    locked(|area| {
        for place in &mut area.places {
            if place.state == STARTING && place.token == token {
                place.state = FREE;
            }
        }
    });
}

/// What a trainer finds where its place should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The place is this process's until it exits.
    Mine,
    /// It is, and what it was started for was cancelled meanwhile.
    Cancelled,
    /// The claim is void.
    Void,
}

/// Makes this process the trainer that a place was claimed for.
pub fn take(token: u64) -> Taken {
    let pid = my_pid();
    let taken = locked(|area| {
        let mut places = area.places.iter_mut();
        let Some(place) = places.find(|place| place.state == STARTING && place.token == token) else {
            return Taken::Void;
        };
        (place.state, place.pid) = (RUNNING, pid);
        match place.cancelled {
            0 => Taken::Mine,
            _ => Taken::Cancelled,
        }
    });
    let taken = taken.unwrap_or(Taken::Void);
    if taken != Taken::Void {
        // SAFETY: in a process that the server has set up.
        unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0)) };
    }
    taken
}

#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _argument: pg_sys::Datum) {
    let pid = my_pid();
    locked(|area| {
        for place in &mut area.places {
            if place.state == RUNNING && place.pid == pid {
                place.state = FREE;
            }
        }
    });
}

/// The trainer of a job of this database: its process, 0 while it starts; `None` where there is none.
pub fn trainer(job: i64) -> Option<i32> {
    let database = my_database();
    locked(|area| {
        area.tidy();
        area.of(database, job).map(|place| place.pid)
    })
    .flatten()
}

/// Cancels what the trainer of a job of this database does, or will do where it still starts; without a trainer nothing
/// happens. The caller has checked that the job is the current user's to cancel.
pub fn interrupt(job: i64) {
    let database = my_database();
    locked(|area| {
        let mut places = area.places.iter_mut();
        let place = places.find(|place| place.state != FREE && place.database == database && place.job == job);
        match place {
            // SAFETY: the process is the trainer of that job: it frees its place under the lock before it is gone.
            Some(place) if place.state == RUNNING => unsafe {
                libc::kill(place.pid, libc::SIGINT);
            },
            Some(place) => place.cancelled = 1,
            None => {}
        }
    });
}
