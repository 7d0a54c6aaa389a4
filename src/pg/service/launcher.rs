//! The launcher: a static background worker that keeps one encoder worker a device and, once it was asked for, the LLM's
//! worker alive, with back-off, and empties the slots that were left on a device without a worker.
//!
//! It exits with 1 whenever it ends, so that the server starts it again a second later: a background worker that exits with 0
//! is never started again. Its workers are left alone (a server that shuts down ends them itself), and the next launcher takes
//! those that it finds for its own.

use super::shared::{self, ABANDONED, DeviceState, FREE, Shared};
use crate::pg::settings;
use crate::serve::ipc::statistics::add;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::{pg_guard, pg_sys};
use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pause before the first new start, doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest for a device that does not work, since a missing library or an old GPU does not heal by itself. A reload
/// of the configuration tries it at once.
const LOST_PAUSE: Duration = Duration::from_secs(300);
/// How often a worker that starts or ends is looked at.
const ENDING: Duration = Duration::from_millis(20);
/// A worker that lived this long was a success.
const SUCCESS: Duration = Duration::from_secs(5);

fn copy<const N: usize>(to: &mut [std::ffi::c_char; N], from: &CStr) {
    for (to, from) in to.iter_mut().zip(from.to_bytes().iter().take(N - 1)) {
        *to = *from as std::ffi::c_char;
    }
}

/// The description of a worker of this library.
pub fn worker(name: &CStr, function: &CStr, restart: i32) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: pg_sys::BGWORKER_SHMEM_ACCESS as i32,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: restart,
        ..Default::default()
    };
    copy(&mut worker.bgw_name, name);
    copy(&mut worker.bgw_type, name);
    copy(&mut worker.bgw_library_name, c"situ");
    copy(&mut worker.bgw_function_name, function);
    worker
}

/// Registers the launcher. In `_PG_init`, while the postmaster loads its libraries.
pub fn register() {
    let mut launcher = worker(c"situ launcher", c"situ_launcher_main", 1);
    // SAFETY: the server copies the structure.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut launcher) }
}

/// Entry of the launcher's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn situ_launcher_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let (Some(encoder), Some(llm)) = (Shared::get(), Shared::llm()) else {
        return;
    };
    for shared in [encoder, llm] {
        // SAFETY: this process's latch in the server's process table.
        let latch = unsafe { pg_sys::MyLatch };
        shared.launcher_latch.store(latch, Ordering::SeqCst);
    }
    let children = (0..encoder.devices().len()).map(|number| Child::new(encoder, number, &ENCODER));
    let mut children: Vec<Child> = children.chain([Child::new(llm, 0, &LLM)]).collect();
    while !BackgroundWorker::sigterm_received() {
        if BackgroundWorker::sighup_received() {
            // SAFETY: outside of a transaction, as the server's own workers do.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            children.iter_mut().for_each(Child::try_at_once);
        }
        // The one behind those of the setting is for when one of them is lost.
        let lost = encoder.devices()[..encoder.listed()].iter().any(DeviceState::is_lost);
        let standby = lost && settings::device_fallback();
        let mut wait = LONGEST_PAUSE;
        for child in &mut children {
            let wanted = match child.program.always {
                true => child.number < encoder.listed() || standby,
                false => child.shared.wanted.load(Ordering::SeqCst) != 0,
            };
            wait = wait.min(child.look(wanted));
        }
        sleep(wait);
    }
    // SAFETY: ends the process through the server's own exit callbacks.
    unsafe { pg_sys::proc_exit(1) }
}

/// What the worker of a queue is.
struct Program {
    title: &'static str,
    function: &'static CStr,
    /// Started with the server, not on first use.
    always: bool,
}

const ENCODER: Program = Program {
    title: "situ encoder",
    function: c"situ_encoder_main",
    always: true,
};
const LLM: Program = Program {
    title: "situ llm",
    function: c"situ_llm_main",
    always: false,
};

/// A worker that was started or found.
#[derive(Clone, Copy)]
enum Running {
    Started(*mut pg_sys::BackgroundWorkerHandle),
    /// By an earlier launcher, whose handle went with it.
    Found,
}

impl Running {
    fn has_ended(self, state: &DeviceState) -> bool {
        match self {
            Running::Started(handle) => stopped(handle),
            Running::Found => !state.worker_runs(),
        }
    }
}

/// The worker of one device.
struct Child {
    shared: &'static Shared,
    program: &'static Program,
    number: usize,
    running: Option<(Running, Instant)>,
    epoch_before: u64,
    pause: Duration,
    next_start: Instant,
}

impl Child {
    fn new(shared: &'static Shared, number: usize, program: &'static Program) -> Child {
        Child {
            shared,
            program,
            number,
            running: None,
            epoch_before: 0,
            pause: FIRST_PAUSE / 2,
            next_start: Instant::now(),
        }
    }

    fn try_at_once(&mut self) {
        self.next_start = Instant::now();
        self.pause = FIRST_PAUSE;
    }

    /// Starts the worker where it is `wanted` and does not run; says when to look again.
    fn look(&mut self, wanted: bool) -> Duration {
        let shared = self.shared;
        let Some(state) = shared.devices().get(self.number) else {
            return LONGEST_PAUSE;
        };
        if self.running.is_none() && state.worker_runs() {
            self.epoch_before = state.epoch.load(Ordering::SeqCst);
            self.running = Some((Running::Found, Instant::now()));
        }
        if let Some((worker, since)) = self.running
            && worker.has_ended(state)
        {
            self.running = None;
            self.pause = match since.elapsed() >= SUCCESS {
                true => FIRST_PAUSE,
                false if state.is_lost() => (self.pause * 2).min(LOST_PAUSE),
                false => longer(self.pause),
            };
            self.next_start = Instant::now() + self.pause;
            add(&state.account.counters.restarts, 1);
            pgrx::log!(
                "situ launcher: the {} worker of {} ended; a new one starts in {} ms",
                self.program.title.trim_start_matches("situ "),
                state.name.get(),
                self.pause.as_millis()
            );
            if matches!(worker, Running::Started(_)) && state.epoch.load(Ordering::SeqCst) == self.epoch_before {
                state.start_failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.running.is_none() && !state.worker_runs() {
            empty_abandoned_slots(shared, self.number);
            if wanted && Instant::now() >= self.next_start {
                self.start(state);
            }
        }
        match self.running {
            Some(_) if state.worker_runs() => Duration::from_secs(5),
            Some(_) => ENDING,
            None if !wanted => LONGEST_PAUSE,
            None => self
                .next_start
                .saturating_duration_since(Instant::now())
                .clamp(FIRST_PAUSE / 10, LONGEST_PAUSE),
        }
    }

    fn start(&mut self, state: &DeviceState) {
        self.epoch_before = state.epoch.load(Ordering::SeqCst);
        let title = match self.shared.devices().len() {
            1 => self.program.title.to_owned(),
            _ => format!("{} {} ({})", self.program.title, self.number, state.name.get()),
        };
        match start(&title, self.program.function, self.number) {
            Some(handle) => self.running = Some((Running::Started(handle), Instant::now())),
            None => {
                state.start_failures.fetch_add(1, Ordering::Relaxed);
                state.note_error("no background worker slot is free: raise max_worker_processes");
                pgrx::log!("situ launcher: no background worker slot is free: raise max_worker_processes");
                self.pause = longer(self.pause);
                self.next_start = Instant::now() + self.pause;
            }
        }
    }
}

/// Empties the slots that were left, while the device has no worker that would.
fn empty_abandoned_slots(shared: &'static Shared, device: usize) {
    for number in shared.slots_of(device) {
        let slot = shared.slot(number);
        if slot.state.load(Ordering::SeqCst) == ABANDONED {
            shared.requests(number).reset();
            shared.replies(number).reset();
            slot.state.store(FREE, Ordering::SeqCst);
            shared.slot_freed();
        }
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

/// Starts a worker; `None` where the server has no room for one.
fn start(title: &str, function: &CStr, device: usize) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let title = CString::new(title).ok()?;
    let mut description = worker(&title, function, pg_sys::BGW_NEVER_RESTART);
    description.bgw_main_arg = pg_sys::Datum::from(device);
    let mut handle = std::ptr::null_mut();
    // SAFETY: the server copies the structure; the handle is allocated in a context that lives as long as we do.
    unsafe {
        let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut description, &mut handle);
        pg_sys::MemoryContextSwitchTo(previous);
        registered.then_some(handle)
    }
}

fn stopped(handle: *mut pg_sys::BackgroundWorkerHandle) -> bool {
    let mut pid = 0;
    // SAFETY: a handle that the server gave.
    let status = unsafe { pg_sys::GetBackgroundWorkerPid(handle, &mut pid) };
    status == pg_sys::BgwHandleStatus::BGWH_STOPPED
}

fn sleep(wait: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            wait.as_millis() as i64,
            shared::wait_event(),
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}
