//! One call of a backend: a claimed slot, requests in flight, and what happens when either side goes away.
//!
//! The slot is given back when the channel is dropped, also when an error unwinds through it. A process that ends
//! without unwinding (a terminated connection) gives it back in a callback of the server, as does the end of a
//! transaction for whatever should still be held then.

use super::ServiceError;
use super::shared::{self, DeviceState, Shared};
use super::slot_alloc::{allocate, allocate_any, allocate_beside, release, release_all};
use crate::pg::settings;
use crate::serve::ipc::wire::{Assembler, Lane, Outgoing, Reply, WHOLE_CALL, decode_reply};
use pgrx::{pg_guard, pg_sys};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

/// Items and bytes of text that one call keeps in flight.
const MOST_ITEMS: usize = 256;
const MOST_BYTES: usize = 4 << 20;
/// How long a call waits for a worker that is known not to start, and for one that may.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

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
    /// Kept until it is answered, and shared with what is on its way.
    message: Arc<Vec<u8>>,
    /// Workers that got it and ended.
    lost: u32,
    /// A part of its answer was read: it cannot be sent again.
    begun: bool,
}

/// A claimed slot and what is in flight on it.
pub struct Channel {
    shared: &'static Shared,
    lane: Lane,
    number: usize,
    generation: u64,
    epoch: u64,
    outgoing: Outgoing,
    assembler: Assembler,
    sent: BTreeMap<u64, Sent>,
    sent_bytes: usize,
    /// Since when the call waited for its slot; until the first request is sent.
    opened: Option<Instant>,
    last_answer: Instant,
    no_worker_since: Option<Instant>,
}

impl Channel {
    /// Claims a slot; waits (cancellable) while all are taken.
    /// `model`: the name under which the caller knows what it asks.
    pub fn open(lane: Lane, model: &str) -> Result<Channel, ServiceError> {
        Channel::open_in(Shared::get().ok_or(ServiceError::NotPreloaded)?, lane, model)
    }

    /// As [`Channel::open`], in a given queue. Its worker is started where it is not wanted all the time.
    pub fn open_in(shared: &'static Shared, lane: Lane, model: &str) -> Result<Channel, ServiceError> {
        watch_exits();
        if shared.wanted.swap(1, Ordering::SeqCst) == 0 {
            shared::wake(&shared.launcher_latch);
        }
        let since = Instant::now();
        let number = match allocate_any(shared, lane)? {
            Some(number) => number,
            None => {
                shared.prepare_to_wait();
                let found = wait_for_slot(shared, lane, since);
                shared.stop_waiting();
                found?
            }
        };
        let mut channel = Channel::on(shared, lane, number, model);
        channel.opened = Some(since);
        Ok(channel)
    }

    /// As [`Channel::open`] on a given device; `None` where all its slots are taken.
    pub fn open_on(lane: Lane, model: &str, device: usize) -> Result<Option<Channel>, ServiceError> {
        let shared = Shared::get().ok_or(ServiceError::NotPreloaded)?;
        watch_exits();
        Ok(allocate(shared, device, lane).map(|number| Channel::on(shared, lane, number, model)))
    }

    /// A further slot for a call whose slots are on the `used` devices: on another one of `situ.devices` that has a worker.
    /// `None` where there is none, or where half of its slots are taken, so that calls with many slots never keep others
    /// out. Where nobody takes over what a lost device has, one that was lost does not count until it has answered something:
    /// it may be lost again, and this call with it.
    pub fn open_beside(model: &str, used: &[usize]) -> Option<Channel> {
        let shared = Shared::get()?;
        let mut others = (0..shared.listed()).filter(|device| {
            let state = &shared.devices()[*device];
            let works = match settings::device_fallback() {
                true => !state.is_lost(),
                false => !state.is_on_probation(),
            };
            !used.contains(device) && state.worker_runs() && works
        });
        let number = others.find_map(|device| allocate_beside(shared, device))?;
        Some(Channel::on(shared, Lane::Bulk, number, model))
    }

    fn on(shared: &'static Shared, lane: Lane, number: usize, model: &str) -> Channel {
        let slot = shared.slot(number);
        slot.model.set(model);
        // Since the claim nothing could fail: the slot is ours and complete now.
        Channel {
            shared,
            lane,
            number,
            generation: slot.generation.load(Ordering::Relaxed),
            epoch: slot.epoch.load(Ordering::Relaxed),
            outgoing: Outgoing::default(),
            assembler: Assembler::default(),
            sent: BTreeMap::new(),
            sent_bytes: 0,
            opened: None,
            last_answer: Instant::now(),
            no_worker_since: None,
        }
    }

    /// The number that requests carry to tell this call's from another's.
    pub fn generation(&self) -> u64 {
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

    /// Bytes of the requests that wait for an answer.
    pub fn outstanding(&self) -> usize {
        self.sent_bytes
    }

    /// Number of the device that the slot belongs to.
    pub fn device_number(&self) -> usize {
        self.number % self.shared.devices().len()
    }

    /// Whether a worker is there to serve the slot.
    pub fn is_served(&self) -> bool {
        self.device().worker_runs()
    }

    /// Measured tokens a second of the device; `None` before the first measurement.
    pub fn speed(&self) -> Option<u64> {
        let speed = self.device().account.counters.speed.load(Ordering::Relaxed);
        (speed > 0).then_some(speed)
    }

    /// Time since the last answer, or since the first request was sent.
    pub fn since_answer(&self) -> Duration {
        self.last_answer.elapsed()
    }

    /// Sends a request without waiting: what does not fit goes with the next [`Channel::poll`].
    pub fn send(&mut self, number: u64, message: Vec<u8>) {
        if self.sent.is_empty() {
            self.last_answer = self.opened.take().unwrap_or_else(Instant::now);
        }
        let message = Arc::new(message);
        self.sent_bytes += message.len();
        self.outgoing.push(message.clone());
        let sent = Sent {
            message,
            lost: 0,
            begun: false,
        };
        self.sent.insert(number, sent);
        self.slot().items.fetch_add(1, Ordering::Relaxed);
        self.slot().outstanding.store(self.sent_bytes as u64, Ordering::Relaxed);
        if self.follow_worker_quietly() && self.outgoing.flush(&self.shared.requests(self.number)) {
            self.device().wake_worker();
        }
    }

    fn slot(&self) -> &'static shared::Slot {
        self.shared.slot(self.number)
    }

    fn device(&self) -> &'static DeviceState {
        self.shared.device_of(self.number)
    }

    fn follow_worker_quietly(&self) -> bool {
        self.device().epoch.load(Ordering::SeqCst) == self.epoch
    }

    /// An answer that is there, with its item's number.
    pub fn poll(&mut self) -> Result<Option<(u64, Reply)>, ServiceError> {
        let Some(message) = self.poll_message()? else {
            return Ok(None);
        };
        let (number, reply) = decode_reply(&message)?;
        match reply {
            Reply::Failed(failure) if number == WHOLE_CALL => Err(failure.into()),
            reply => {
                self.answered(number, true)?;
                Ok(Some((number, reply)))
            }
        }
    }

    /// A message of the worker that is there, without its length word. Its reader says what it answers
    /// ([`Channel::answered`]).
    pub fn poll_message(&mut self) -> Result<Option<Vec<u8>>, ServiceError> {
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
            self.device().wake_worker();
        }
        Ok(message?)
    }

    /// Notes an answer to item `number`, `complete` or a part of one.
    pub fn answered(&mut self, number: u64, complete: bool) -> Result<(), ServiceError> {
        let unknown = || ServiceError::Protocol(format!("reply to {number}"));
        self.last_answer = Instant::now();
        if !complete {
            self.sent.get_mut(&number).ok_or_else(unknown)?.begun = true;
            return Ok(());
        }
        let sent = self.sent.remove(&number).ok_or_else(unknown)?;
        self.sent_bytes -= sent.message.len();
        self.slot().done.fetch_add(1, Ordering::Relaxed);
        self.slot().outstanding.store(self.sent_bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Where a new worker runs: empties the rings and sends again what was not answered, each item once.
    fn follow_worker(&mut self) -> Result<(), ServiceError> {
        let device = self.device();
        if device.is_lost() && !device.worker_runs() {
            return self.leave_device();
        }
        let epoch = device.epoch.load(Ordering::SeqCst);
        if epoch == self.epoch {
            return Ok(());
        }
        self.count_loss()?;
        self.shared.requests(self.number).reset();
        self.shared.replies(self.number).reset();
        self.send_again(epoch);
        Ok(())
    }

    /// Goes to another device with what was not answered. Where all slots of the others are taken, tries with the next
    /// poll.
    fn leave_device(&mut self) -> Result<(), ServiceError> {
        if !settings::device_fallback() {
            return Err(self.device_lost());
        }
        let Some(number) = allocate_any(self.shared, self.lane)? else {
            return Ok(());
        };
        let (from, to) = (self.slot(), self.shared.slot(number));
        to.model.set(&from.model.get());
        to.items.store(from.items.load(Ordering::Relaxed), Ordering::Relaxed);
        to.done.store(from.done.load(Ordering::Relaxed), Ordering::Relaxed);
        // The requests carry it, and it is the name of the call for those who want to cancel it.
        to.generation.store(self.generation, Ordering::SeqCst);
        let left = std::mem::replace(&mut self.number, number);
        release(self.shared, left, false);
        self.count_loss()?;
        self.send_again(to.epoch.load(Ordering::SeqCst));
        Ok(())
    }

    fn device_lost(&self) -> ServiceError {
        ServiceError::DeviceLost {
            device: self.device().name.get(),
            last_error: self.device().last_error.get(),
        }
    }

    /// Notes that the worker that had the requests is gone; an item that was lost twice, or whose answer had begun, is an
    /// error.
    fn count_loss(&mut self) -> Result<(), ServiceError> {
        let had_worker = self.epoch != 0;
        for sent in self.sent.values_mut() {
            sent.lost += u32::from(had_worker);
            if sent.lost > 1 || sent.begun {
                return Err(ServiceError::WorkerLost {
                    last_error: self.device().last_error.get(),
                });
            }
        }
        Ok(())
    }

    fn send_again(&mut self, epoch: u64) {
        self.outgoing.clear();
        self.assembler.clear();
        self.sent
            .values()
            .for_each(|sent| self.outgoing.push(sent.message.clone()));
        self.epoch = epoch;
        self.slot().epoch.store(epoch, Ordering::SeqCst);
    }

    /// How long a call without a worker waits for one: briefly where starts failed or the launcher itself never ran.
    fn patience(&self) -> Duration {
        let failed = self.device().start_failures.load(Ordering::Relaxed) > 0;
        match failed || self.shared.launcher_latch.load(Ordering::Relaxed).is_null() {
            true => PATIENCE,
            false => LONGEST_PATIENCE,
        }
    }

    /// Before a wait: fails where requests have waited for a worker for too long.
    pub fn check_worker(&mut self) -> Result<(), ServiceError> {
        if self.device().worker_runs() {
            self.no_worker_since = None;
        } else if self.no_worker_since.get_or_insert_with(Instant::now).elapsed() > self.patience() {
            return Err(ServiceError::NoWorker {
                last_error: self.device().last_error.get(),
            });
        }
        Ok(())
    }
}

/// How long a wait may last that has lasted for `idle` so far: a second, or what `situ.request_timeout` leaves.
fn time_left(idle: Duration) -> Result<Duration, ServiceError> {
    let (timeout, most) = (settings::request_timeout(), Duration::from_secs(1));
    if timeout <= 0 {
        return Ok(most);
    }
    let left = Duration::from_millis(timeout as u64).saturating_sub(idle);
    match left.is_zero() {
        true => Err(ServiceError::Timeout { milliseconds: timeout }),
        false => Ok(most.min(left)),
    }
}

/// Claims a slot as soon as one is free, among the sleepers of the queue. Raises the server's error when the statement
/// is cancelled.
fn wait_for_slot(shared: &'static Shared, lane: Lane, since: Instant) -> Result<usize, ServiceError> {
    loop {
        if let Some(number) = allocate_any(shared, lane)? {
            return Ok(number);
        }
        shared.wait_for_slot(time_left(since.elapsed())?, shared::wait_event());
    }
}

/// Waits until something may have happened on any channel of this process; `idle` is the time since the call's last
/// answer, for `situ.request_timeout`. Raises the server's error when the statement is cancelled.
pub fn wait(idle: Duration) -> Result<(), ServiceError> {
    let most = time_left(idle)?;
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

impl Drop for Channel {
    fn drop(&mut self) {
        let answered = self.sent.is_empty() && self.outgoing.bytes() == 0;
        // A worker that came meanwhile does not touch the slot; its next owner empties the rings.
        release(self.shared, self.number, answered);
    }
}
