//! The queue in shared memory: its layout, and who may touch which part when.
//!
//! There are two queues of this layout, one for the encoder's workers and one for the LLM's ([`Shared::get`],
//! [`Shared::llm`]). The area of each holds [`Shared`] and, after it, one [`Slot`] header and two rings (requests, replies) a slot. A backend
//! claims a slot for the duration of a call. Rules:
//!
//! - **State.** `FREE -> ACTIVE` by the claiming backend (compare-and-swap through `CLAIMED`). `ACTIVE -> FREE` by its
//!   owner, only when all its requests are answered and read: then both rings are empty and end on a message border, so
//!   the next owner goes on where this one stopped. `ACTIVE -> ABANDONED` by its owner in every other case (error, cancel,
//!   exit of the process). `ABANDONED -> FREE` by the worker (or the launcher, while there is none), after it has emptied the rings and forgotten what it had
//!   from that owner. Nobody else changes a state.
//! - **Rings.** The owner of an `ACTIVE` slot writes requests and reads replies. The worker reads requests and writes
//!   replies of `ACTIVE` slots whose `epoch` is its own, and nothing of other slots.
//! - **Device.** A slot belongs to one device for good ([`Shared::device_of`]), so it has one worker. Where a device is
//!   lost, owners of its slots claim one of another device, take their generation with them and send again there what was
//!   not answered; the slot that they left is emptied by the launcher, which alone starts workers and knows that none runs.
//! - **Generation.** Counts owners of slots; every request carries it. The worker tells owners apart by it and
//!   forgets the old one when a message of the next comes.
//! - **Epoch.** Counts workers of a device. A starting worker raises [`DeviceState::epoch`] (its predecessor has ended:
//!   `worker_pid` is cleared on the way out, and the launcher starts one at a time). The owner of a slot that sees the change empties
//!   both rings (the old worker is gone, the new one does not touch them yet), stores the new epoch in its slot and
//!   sends again what was not answered.
//! - **Cancel.** Anybody with the right to stores a slot's generation in `cancelled` (after its name in `canceller`) and
//!   wakes the owner, who ends its call when it sees its own generation there.
//! - **Latches.** Pointers to latches of processes lie in the slot and in [`Shared`]; they stay valid addresses after the
//!   process has ended (they belong to the server's process table), so a late wake-up is at worst a spurious one.
//!   Whoever waits resets its latch first and looks at the rings after that.
//! - No lock is held anywhere: a process that dies holds nothing up.

use crate::model::Device;
use crate::pg::ereport::fail_with_hint;
use crate::pg::settings;
use crate::serve::encoder::device::{self, MOST_DEVICES};
use crate::serve::ipc::queues::Account;
use crate::serve::ipc::ring::{Positions, Ring};
use crate::serve::ipc::statistics::{Progress, TextCell};
use pgrx::{pg_guard, pg_sys};
use std::ffi::CStr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of a ring; each slot has two.
pub const RING: usize = 64 << 10;

pub const FREE: u32 = 0;
pub const CLAIMED: u32 = 1;
pub const ACTIVE: u32 = 2;
pub const ABANDONED: u32 = 3;

/// One sender's place in the queue.
#[repr(C, align(64))]
pub struct Slot {
    pub state: AtomicU32,
    pub generation: AtomicU64,
    pub epoch: AtomicU64,
    /// The owner's latch.
    pub latch: AtomicPtr<pg_sys::Latch>,
    /// The owner's process, role and database.
    pub pid: AtomicI32,
    pub user: AtomicU32,
    pub database: AtomicU32,
    /// 0: query, 1: bulk.
    pub lane: AtomicU32,
    /// Since when it holds the slot, in the server's measure.
    pub since: AtomicU64,
    /// Name of the model that it asks, in its database.
    pub model: TextCell<64>,
    /// Items that the owner has sent, and answers that it has read.
    pub items: AtomicU64,
    pub done: AtomicU64,
    /// Bytes of the requests that are not answered yet.
    pub outstanding: AtomicU64,
    /// What the worker has done and does for it.
    pub progress: Progress,
    /// The generation whose requests somebody has cancelled, and who that was.
    pub cancelled: AtomicU64,
    pub canceller: TextCell<64>,
    requests: Positions,
    replies: Positions,
}

/// One device, its worker, and what that has done.
#[repr(C, align(64))]
pub struct DeviceState {
    /// `cpu`, `cuda:0`; set by the postmaster.
    pub name: TextCell<32>,
    /// Number of the worker that runs or ran last; 0 before the first.
    pub epoch: AtomicU64,
    /// Process of the worker, 0 without one.
    pub worker_pid: AtomicI32,
    pub worker_latch: AtomicPtr<pg_sys::Latch>,
    /// Consecutive attempts to start a worker that failed.
    pub start_failures: AtomicU32,
    /// [`LOST`]: the device does not work; its requests go elsewhere until a worker starts on it again. [`ON_PROBATION`]: one
    /// has, and has answered nothing yet ([`DeviceState::is_on_probation`]).
    pub lost: AtomicU32,
    pub account: Account,
    pub last_error: TextCell<1000>,
    /// What the worker has loaded, as JSON.
    pub models: TextCell<MODELS>,
}

/// States of a device that was lost.
pub const LOST: u32 = 1;
const ON_PROBATION: u32 = 2;
/// Microseconds for which a device that was lost is on probation at most: a worker that has lived so long on it may be asked.
const PROBATION: u64 = 60_000_000;

/// Bytes for the description of the models in memory.
pub const MODELS: usize = 8192;

impl DeviceState {
    /// Wakes the worker.
    pub fn wake_worker(&self) {
        wake(&self.worker_latch);
    }

    /// Whether a worker runs.
    pub fn worker_runs(&self) -> bool {
        self.worker_pid.load(Ordering::SeqCst) != 0
    }

    /// Whether the device does not work.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst) == LOST
    }

    /// Whether the device was lost, and has neither answered anything nor lived for a minute since.
    pub fn is_on_probation(&self) -> bool {
        let started = self.account.counters.started_at.load(Ordering::Relaxed);
        match self.lost.load(Ordering::SeqCst) {
            0 => false,
            ON_PROBATION => now().saturating_sub(started) < PROBATION,
            _ => true,
        }
    }

    /// A worker runs on the device (again).
    pub fn found(&self) {
        let before = |lost: u32| (lost == LOST).then_some(ON_PROBATION);
        let _ = self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, before);
    }

    /// The device has answered something, or is to be taken for whole.
    pub fn end_probation(&self) {
        let _ = self
            .lost
            .compare_exchange(ON_PROBATION, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Records an error that users should see in `situ.stat_service`.
    pub fn note_error(&self, text: &str) {
        self.last_error.set(text);
        crate::serve::ipc::statistics::put(&self.account.counters.last_error_at, now());
    }
}

/// The head of the area.
#[repr(C, align(64))]
pub struct Shared {
    /// The server tells a worker without a database nothing about its children: a worker that ends sets this latch.
    pub launcher_latch: AtomicPtr<pg_sys::Latch>,
    /// The last number that an owner of a slot got, in the encoder's queue for the slots of both.
    generation: AtomicU64,
    /// 1: somebody has asked; a queue whose workers are started on first use has them from then on.
    pub wanted: AtomicU32,
    /// Backends that wait for a slot sleep here.
    freed: pg_sys::ConditionVariable,
    slots: u32,
    /// Devices in use; the first `listed` are those of `situ.devices`, one behind them steps in where those are lost.
    devices: u32,
    listed: u32,
    states: [DeviceState; MOST_DEVICES],
}

static AREA: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());
static LLM_AREA: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

const fn round_up(bytes: usize) -> usize {
    bytes.div_ceil(64) * 64
}

const HEAD: usize = round_up(size_of::<Shared>());
const SLOT: usize = round_up(size_of::<Slot>());

/// Slots that fit into `bytes`: at least four a device.
fn slots_in(bytes: usize, devices: usize) -> usize {
    (bytes.saturating_sub(HEAD) / (SLOT + 2 * RING)).clamp(4 * devices, 1 << 16)
}

/// The devices of `situ.devices` and, where no processor is among them, the one that steps in for gpus: a worker each.
fn devices() -> (Vec<Device>, usize) {
    let listed = match device::parse(&settings::devices(), device::gpus()) {
        Ok(listed) => listed,
        Err(error) => fail_with_hint(
            pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("situ.devices: {error}"),
            "Use auto, or names with commas between them: cpu, cuda:0.",
        ),
    };
    let count = listed.len();
    let standby = (!listed.contains(&Device::Cpu)).then_some(Device::Cpu);
    (listed.into_iter().chain(standby).collect(), count)
}

fn area_bytes(slots: usize) -> usize {
    HEAD + slots * (SLOT + 2 * RING)
}

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
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let slots = slots_in(settings::queue_memory(), devices().0.len());
        let llm_slots = slots_in(settings::llm_queue_memory(), 1);
        // Each area begins on a cache line.
        pg_sys::RequestAddinShmemSpace(area_bytes(slots) + area_bytes(llm_slots) + 256);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_startup() {
    // SAFETY: called by the server in its hook, in the postmaster, before any other process can see the memory. The
    // area is 64-byte aligned (the server aligns to cache lines); zeroed bytes are valid values of every field.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let (devices, listed) = devices();
        AREA.store(
            start_area(c"situ encoder queue", settings::queue_memory(), &devices, listed),
            Ordering::Release,
        );
        LLM_AREA.store(
            start_area(c"situ llm queue", settings::llm_queue_memory(), &[Device::Cpu], 1),
            Ordering::Release,
        );
    }
}

/// Attaches to an area; the first to come makes it.
///
/// # Safety
/// In the server's start-up hook, before any other process can see the memory.
unsafe fn start_area(name: &CStr, memory: usize, devices: &[Device], listed: usize) -> *mut Shared {
    let slots = slots_in(memory, devices.len());
    let mut found = false;
    // SAFETY: the area is 64-byte aligned (the server aligns to cache lines); zeroed bytes are valid values of every
    // field.
    unsafe {
        let area = pg_sys::ShmemInitStruct(name.as_ptr(), area_bytes(slots), &mut found);
        let shared = area.cast::<Shared>();
        if !found {
            std::ptr::write_bytes(area.cast::<u8>(), 0, area_bytes(slots));
            pg_sys::ConditionVariableInit(&raw mut (*shared).freed);
            (*shared).slots = slots as u32;
            (*shared).devices = devices.len() as u32;
            (*shared).listed = listed as u32;
            let states: &[DeviceState] = &(*shared).states;
            for (state, device) in states.iter().zip(devices) {
                state.name.set(&device.to_string());
                state.models.set("[]");
            }
        }
        shared
    }
}

/// A number for the owner of a slot, of either queue. Never 0, which in `cancelled` means nobody.
pub fn next_generation() -> u64 {
    Shared::get().map_or(1, |shared| shared.generation.fetch_add(1, Ordering::SeqCst) + 1)
}

impl Shared {
    /// The encoder's queue; `None` where the library was not preloaded.
    pub fn get() -> Option<&'static Shared> {
        // SAFETY: where it is set, it points to shared memory that stays mapped until the process ends.
        unsafe { AREA.load(Ordering::Acquire).as_ref() }
    }

    /// The LLM's queue; `None` where the library was not preloaded.
    pub fn llm() -> Option<&'static Shared> {
        // SAFETY: as above.
        unsafe { LLM_AREA.load(Ordering::Acquire).as_ref() }
    }

    /// Slots in the queue.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Devices that have a share of the slots.
    pub fn devices(&self) -> &[DeviceState] {
        self.states.get(..self.devices as usize).unwrap_or_default()
    }

    /// How many of them `situ.devices` names.
    pub fn listed(&self) -> usize {
        self.listed as usize
    }

    /// The device that a slot belongs to, always: a slot has one worker.
    pub fn device_of(&self, slot: usize) -> &DeviceState {
        &self.states[slot % self.devices as usize]
    }

    /// The slots of a device, by number.
    pub fn slots_of(&self, device: usize) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator {
        (device..self.slots()).step_by(self.devices as usize)
    }

    fn base(&self) -> *mut u8 {
        std::ptr::from_ref(self).cast_mut().cast::<u8>()
    }

    /// A slot by its number.
    pub fn slot(&self, number: usize) -> &Slot {
        assert!(number < self.slots());
        // SAFETY: the headers lie after the head, `slots` of them, zeroed at start.
        unsafe { &*self.base().add(HEAD + number * SLOT).cast::<Slot>() }
    }

    fn ring<'a>(&'a self, number: usize, positions: &'a Positions, second: usize) -> Ring<'a> {
        let offset = HEAD + self.slots() * SLOT + (2 * number + second) * RING;
        // SAFETY: inside the area; the rules above leave one producer and one consumer.
        unsafe { Ring::new(positions, self.base().add(offset), RING) }
    }

    /// Requests of a slot: written by its owner, read by the worker.
    pub fn requests(&self, number: usize) -> Ring<'_> {
        self.ring(number, &self.slot(number).requests, 0)
    }

    /// Replies of a slot: written by the worker, read by its owner.
    pub fn replies(&self, number: usize) -> Ring<'_> {
        self.ring(number, &self.slot(number).replies, 1)
    }

    /// Tells the backends that wait for a slot that one is free.
    pub fn slot_freed(&self) {
        // SAFETY: initialised at start; the server's own function for any process with a PGPROC.
        unsafe { pg_sys::ConditionVariableBroadcast(self.freed()) }
    }

    fn freed(&self) -> *mut pg_sys::ConditionVariable {
        (&raw const self.freed).cast_mut()
    }

    /// Sleeps until a slot was freed, or so long. Raises the server's error when the statement is cancelled.
    pub fn wait_for_slot(&self, most: Duration, event: u32) {
        let milliseconds = most.as_millis().max(1) as i64;
        // SAFETY: as above; a cancel inside leaves the sleep through the server's own abort.
        unsafe {
            pg_sys::ConditionVariableTimedSleep(self.freed(), milliseconds, event);
        }
    }

    /// Enters the list of sleepers before the condition is tested, so that no wake-up is missed.
    pub fn prepare_to_wait(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(self.freed()) }
    }

    /// Leaves it.
    pub fn stop_waiting(&self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::ConditionVariableCancelSleep();
        }
    }
}

/// Sets the latch that a pointer in shared memory names.
pub fn wake(latch: &AtomicPtr<pg_sys::Latch>) {
    let latch = latch.load(Ordering::SeqCst);
    if !latch.is_null() {
        // SAFETY: it points into the server's process table, which lives as long as the shared memory.
        unsafe { pg_sys::SetLatch(latch) }
    }
}

/// Microseconds since 2000-01-01 UTC.
pub fn now() -> u64 {
    // SAFETY: no preconditions.
    unsafe { pg_sys::GetCurrentTimestamp() as u64 }
}

/// What a wait for the encoder is called in `pg_stat_activity`.
pub fn wait_event() -> u32 {
    #[cfg(feature = "pg16")]
    {
        pg_sys::PG_WAIT_EXTENSION
    }
    #[cfg(not(feature = "pg16"))]
    {
        static EVENT: AtomicU32 = AtomicU32::new(0);
        if EVENT.load(Ordering::Relaxed) == 0 {
            // SAFETY: a constant string; the server gives the same number to every process.
            EVENT.store(
                unsafe { pg_sys::WaitEventExtensionNew(c"SituEncoder".as_ptr()) },
                Ordering::Relaxed,
            );
        }
        EVENT.load(Ordering::Relaxed)
    }
}
