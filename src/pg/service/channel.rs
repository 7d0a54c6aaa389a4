//! One call of a backend: a claimed slot, requests in flight, and what happens when either side goes away.
//!
//! The slot is given back when the channel is dropped, also when an error unwinds through it. A process that ends
//! without unwinding (a terminated connection) gives it back in a callback of the server, as does the end of a
//! transaction for whatever should still be held then.

use super::ServiceError;
use super::shared::{self, ACTIVE, CLAIMED, FREE, LEFT, Shared};
use super::wire::{Assembler, Lane, Outgoing, Reply, decode_reply};
use crate::pg::settings;
use parking_lot::Mutex;
use pgrx::{pg_guard, pg_sys};
use std::collections::BTreeMap;
use std::sync::Once;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Items and bytes of text that one call keeps in flight.
const MOST_ITEMS: usize = 256;
const MOST_BYTES: usize = 4 << 20;
/// How long a call waits for a worker that is known not to start, and for one that may.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

/// Numbers of the slots that this process holds.
static HELD: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Gives a slot back. `clean`: everything was answered and read.
fn release(number: usize, clean: bool) {
    let mut held = HELD.lock();
    let Some(place) = held.iter().position(|other| *other == number) else {
        return;
    };
    held.swap_remove(place);
    drop(held);
    let Some(shared) = Shared::get() else { return };
    let slot = shared.slot(number);
    if clean {
        slot.state.store(FREE, Ordering::SeqCst);
        shared.slot_freed();
    } else {
        slot.state.store(LEFT, Ordering::SeqCst);
        shared.wake_worker();
    }
}

fn release_all() {
    loop {
        let number = HELD.lock().last().copied();
        match number {
            Some(number) => release(number, false),
            None => return,
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _argument: pg_sys::Datum) {
    release_all();
}

#[pg_guard]
unsafe extern "C-unwind" fn on_transaction(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    if matches!(event, XACT_EVENT_ABORT | XACT_EVENT_PARALLEL_ABORT) {
        release_all();
    }
}

fn watch_exits() {
    static WATCHED: Once = Once::new();
    // SAFETY: in a backend; the callbacks live as long as the library, which is never unloaded.
    WATCHED.call_once(|| unsafe {
        pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0));
        pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut());
    });
}

struct Sent {
    message: Vec<u8>,
    /// Workers that got it and ended.
    lost: u32,
}

/// A claimed slot and what is in flight on it.
pub struct Channel {
    shared: &'static Shared,
    number: usize,
    generation: u32,
    epoch: u64,
    outgoing: Outgoing,
    assembler: Assembler,
    sent: BTreeMap<u64, Sent>,
    sent_bytes: usize,
    last_answer: Instant,
    no_worker_since: Option<Instant>,
}

impl Channel {
    /// Claims a slot; waits (cancellable) while all are taken.
    /// `model`: the name under which the caller knows what it asks.
    pub fn open(lane: Lane, model: &str) -> Result<Channel, ServiceError> {
        let shared = Shared::get().ok_or(ServiceError::NotPreloaded)?;
        watch_exits();
        let number = match claim(shared, lane) {
            Some(number) => number,
            None => {
                shared.prepare_to_wait();
                loop {
                    if let Some(number) = claim(shared, lane) {
                        shared.stop_waiting();
                        break number;
                    }
                    shared.wait_for_slot(shared::wait_event());
                }
            }
        };
        let slot = shared.slot(number);
        slot.model.set(model);
        // Since the claim nothing could fail: the slot is ours and complete now.
        Ok(Channel {
            shared,
            number,
            generation: slot.generation.load(Ordering::Relaxed),
            epoch: slot.epoch.load(Ordering::Relaxed),
            outgoing: Outgoing::default(),
            assembler: Assembler::default(),
            sent: BTreeMap::new(),
            sent_bytes: 0,
            last_answer: Instant::now(),
            no_worker_since: None,
        })
    }

    /// The number that requests carry to tell this call's from another's.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether another item may be sent.
    pub fn has_room(&self) -> bool {
        self.sent.len() < MOST_ITEMS && self.sent_bytes < MOST_BYTES
    }

    /// Items that wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.sent.len()
    }

    /// Sends a request without waiting: what does not fit goes with the next [`Channel::poll`].
    pub fn send(&mut self, number: u64, message: Vec<u8>) {
        if self.sent.is_empty() {
            self.last_answer = Instant::now();
        }
        self.sent_bytes += message.len();
        self.outgoing.push(message.clone());
        self.sent.insert(number, Sent { message, lost: 0 });
        self.slot().items.fetch_add(1, Ordering::Relaxed);
        if self.follow_worker_quietly() && self.outgoing.flush(&self.shared.requests(self.number)) {
            self.shared.wake_worker();
        }
    }

    fn slot(&self) -> &'static shared::Slot {
        self.shared.slot(self.number)
    }

    fn follow_worker_quietly(&self) -> bool {
        self.shared.epoch.load(Ordering::SeqCst) == self.epoch
    }

    /// An answer that is there, with its item's number.
    pub fn poll(&mut self) -> Result<Option<(u64, Reply)>, ServiceError> {
        let slot = self.slot();
        if slot.cancelled.load(Ordering::SeqCst) == self.generation {
            let by = slot.canceller.get();
            return Err(ServiceError::Cancelled { by });
        }
        self.follow_worker()?;
        let shared = self.shared;
        let mut moved = self.outgoing.flush(&shared.requests(self.number));
        let message = self.assembler.take(&shared.replies(self.number), &mut moved);
        if moved {
            shared.wake_worker();
        }
        let protocol = |error: super::wire::BadMessage| ServiceError::Protocol(error.to_string());
        let Some(message) = message.map_err(protocol)? else {
            return Ok(None);
        };
        let (number, reply) = decode_reply(&message).map_err(protocol)?;
        let sent = self
            .sent
            .remove(&number)
            .ok_or_else(|| ServiceError::Protocol(format!("reply to {number}")))?;
        self.sent_bytes -= sent.message.len();
        self.last_answer = Instant::now();
        self.slot().done.fetch_add(1, Ordering::Relaxed);
        Ok(Some((number, reply)))
    }

    /// Where a new worker runs: empties the rings and sends again what was not answered, each item once.
    fn follow_worker(&mut self) -> Result<(), ServiceError> {
        let epoch = self.shared.epoch.load(Ordering::SeqCst);
        if epoch == self.epoch {
            return Ok(());
        }
        let had_worker = self.epoch != 0;
        for sent in self.sent.values_mut() {
            sent.lost += u32::from(had_worker);
            if sent.lost > 1 {
                return Err(ServiceError::WorkerLost {
                    last_error: self.shared.last_error.get(),
                });
            }
        }
        self.outgoing.clear();
        self.assembler.clear();
        self.shared.requests(self.number).reset();
        self.shared.replies(self.number).reset();
        self.sent
            .values()
            .for_each(|sent| self.outgoing.push(sent.message.clone()));
        self.epoch = epoch;
        self.shared.slot(self.number).epoch.store(epoch, Ordering::SeqCst);
        Ok(())
    }

    /// How long a call without a worker waits for one: briefly where starts failed or the launcher itself never ran.
    fn patience(&self) -> Duration {
        let failed = self.shared.start_failures.load(Ordering::Relaxed) > 0;
        match failed || self.shared.launcher_latch.load(Ordering::Relaxed).is_null() {
            true => PATIENCE,
            false => LONGEST_PATIENCE,
        }
    }

    /// Waits until something may have happened. Raises the server's error when the statement is cancelled.
    pub fn wait(&mut self) -> Result<(), ServiceError> {
        let timeout = settings::request_timeout();
        let mut most = Duration::from_secs(1);
        if timeout > 0 {
            let left = Duration::from_millis(timeout as u64).saturating_sub(self.last_answer.elapsed());
            if left.is_zero() {
                return Err(ServiceError::Timeout { milliseconds: timeout });
            }
            most = most.min(left);
        }
        if self.shared.worker_runs() {
            self.no_worker_since = None;
        } else if self.no_worker_since.get_or_insert_with(Instant::now).elapsed() > self.patience() {
            return Err(ServiceError::NoWorker {
                last_error: self.shared.last_error.get(),
            });
        }
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        // SAFETY: this process's own latch.
        unsafe {
            let milliseconds = most.as_millis().max(1) as i64;
            pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, shared::wait_event());
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        pgrx::check_for_interrupts!();
        Ok(())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let answered = self.sent.is_empty() && self.outgoing.bytes() == 0;
        // A worker that came meanwhile does not touch the slot; its next owner empties the rings.
        release(self.number, answered);
    }
}

/// Claims a free slot of the lane's share.
fn claim(shared: &'static Shared, lane: Lane) -> Option<usize> {
    let open = shared.slots() - shared.reserved();
    let own = match lane {
        Lane::Query => (0..shared.slots()).rev().find(|number| take(shared, *number)),
        Lane::Bulk => (0..open).find(|number| take(shared, *number)),
    }?;
    let slot = shared.slot(own);
    // SAFETY: set in every backend; `MyLatch` lies in the server's process table.
    let (pid, latch, user, database) = unsafe {
        let user = pg_sys::GetUserId().to_u32();
        (pg_sys::MyProcPid, pg_sys::MyLatch, user, pg_sys::MyDatabaseId.to_u32())
    };
    // Never 0, which in `cancelled` means nobody.
    if slot.generation.fetch_add(1, Ordering::SeqCst) == u32::MAX {
        slot.generation.store(1, Ordering::SeqCst);
    }
    slot.pid.store(pid, Ordering::Relaxed);
    slot.user.store(user, Ordering::Relaxed);
    slot.database.store(database, Ordering::Relaxed);
    slot.lane.store(u32::from(lane == Lane::Bulk), Ordering::Relaxed);
    slot.since.store(shared::now(), Ordering::Relaxed);
    slot.items.store(0, Ordering::Relaxed);
    slot.done.store(0, Ordering::Relaxed);
    slot.progress.tokens.store(0, Ordering::Relaxed);
    slot.progress.running.store(0, Ordering::Relaxed);
    slot.latch.store(latch, Ordering::SeqCst);
    let epoch = shared.epoch.load(Ordering::SeqCst);
    if slot.epoch.swap(epoch, Ordering::SeqCst) != epoch {
        shared.requests(own).reset();
        shared.replies(own).reset();
    }
    HELD.lock().push(own);
    slot.state.store(ACTIVE, Ordering::SeqCst);
    Some(own)
}

fn take(shared: &Shared, number: usize) -> bool {
    let state = &shared.slot(number).state;
    state.load(Ordering::Relaxed) == FREE
        && state
            .compare_exchange(FREE, CLAIMED, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
}
