//! The thread pool: parallel loops with low overhead.
//!
//! A loop is published in one slot ([`Shared::job`]) and its tasks are claimed from one counter. Idle threads spin for
//! a short while, then park. The caller takes part in its own loop, so a pool of one thread starts none.
//!
//! Who may touch what: [`Pool::run`] holds `turn` for the whole loop, so there is one loop at a time. `state` holds
//! the loop's number, an open bit and the count of threads inside. A thread reads `job` only after it has entered (a
//! compare-exchange that raises the count while the bit is set); the caller clears the bit and waits for the count to
//! reach zero before it returns, so the closure outlives every use, and a thread that wakes late never enters.
//!
//! Threads block every signal, so a server's handlers run only on the server's own thread.

use crate::compute::ComputeError;
use parking_lot::{Condvar, Mutex};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Rounds of spinning before a thread parks: some tens of microseconds.
const SPINS: u32 = 2000;
/// Low bits of `state`: threads inside the loop.
const INSIDE: u64 = 0xffff;
/// Bit of `state`: threads may enter the loop.
const OPEN: u64 = 1 << 16;
/// One loop further in `state`.
const NEXT: u64 = 1 << 17;
/// Most threads of a pool; the count of threads inside must fit its bits.
const MAX_THREADS: usize = 1024;

thread_local! {
    /// Whether this thread is inside a loop: a loop inside a loop runs on its own thread alone.
    static INSIDE_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is inside a loop, so that one which it starts now runs on it alone.
pub fn inside_loop() -> bool {
    INSIDE_LOOP.get()
}

/// The loop that runs now: a closure with its type erased, and its number of tasks.
#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize, usize),
    body: *const (),
    tasks: usize,
}

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    failed: AtomicBool,
    panic: Mutex<Option<String>>,
    shutdown: AtomicBool,
    parked: AtomicUsize,
    park: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the caller of `run` while no thread is inside (the head comment has the protocol)
// and read only by threads inside; everything else is synchronised by its own type.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointers of `job` are used only while the closure behind them lives; the closure is `Sync`.
unsafe impl Send for Shared {}

/// A fixed group of threads that run parallel loops with low overhead.
pub struct Pool {
    shared: Arc<Shared>,
    turn: Mutex<()>,
    handles: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` - 1 threads (the caller of [`Pool::run`] is the last one). 0 counts as 1.
    ///
    /// Fails with [`ComputeError::Spawn`] where the system refuses a thread; those already started end.
    pub fn new(threads: usize) -> Result<Pool, ComputeError> {
        let threads = threads.clamp(1, MAX_THREADS);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            panic: Mutex::new(None),
            shutdown: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            park: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Pool {
            shared,
            turn: Mutex::new(()),
            handles: Vec::new(),
        };
        let blocked = SignalsBlocked::new();
        for index in 1..threads {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("situ-compute-{index}"));
            let handle = thread
                .spawn(move || work(&shared, index))
                .map_err(|source| ComputeError::Spawn { index, threads, source })?;
            pool.handles.push(handle);
        }
        drop(blocked);
        Ok(pool)
    }

    /// Threads that take part in a loop, the caller included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `body(task)` once for each task in `0..tasks` and returns when all calls have returned.
    ///
    /// Tasks run in any order on any thread. A panic in one is caught: tasks that have not begun are dropped and the
    /// loop fails with [`ComputeError::Panicked`]. A loop started inside a task runs on that task's thread alone.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, body: F) -> Result<(), ComputeError> {
        self.run_indexed(tasks, |_, task| body(task))
    }

    /// Like [`Pool::run`] with the number of the thread, below [`Pool::threads`], as first argument: no two calls of
    /// one loop run at once with the same number, so it may choose a thread's own scratch memory.
    pub fn run_indexed<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: F) -> Result<(), ComputeError> {
        self.run_until(tasks, &|| false, body)
    }

    /// Like [`Pool::run_indexed`], but the calling thread asks `stop` before the loop and before each task of its own:
    /// where it says so, tasks that have not begun are dropped and the loop fails with [`ComputeError::Stopped`]. So the
    /// answer comes within about two tasks.
    ///
    /// `stop` may run loops of its own on this pool: before the loop on all threads, between tasks on the calling thread
    /// alone ([`inside_loop`] tells which).
    pub fn run_until<F: Fn(usize, usize) + Sync>(
        &self,
        tasks: usize,
        stop: &dyn Fn() -> bool,
        body: F,
    ) -> Result<(), ComputeError> {
        if tasks == 0 {
            return Ok(());
        }
        if self.handles.is_empty() || tasks == 1 || INSIDE_LOOP.get() {
            return run_alone(tasks, stop, body);
        }
        match catch_unwind(AssertUnwindSafe(stop)) {
            Ok(false) => {}
            Ok(true) => return Err(ComputeError::Stopped),
            Err(panic) => return Err(ComputeError::Panicked(message(panic))),
        }
        let _turn = self.turn.lock();
        let job = Job {
            call: call_erased::<F>,
            body: (&raw const body).cast(),
            tasks,
        };
        // SAFETY: `turn` is held, and the closure lives until no thread is inside.
        unsafe { self.open(job) };
        INSIDE_LOOP.set(true);
        let stopped = take_tasks(&self.shared, 0, stop);
        INSIDE_LOOP.set(false);
        self.close();
        if self.shared.failed.load(Ordering::Acquire) {
            let text = self.shared.panic.lock().take().unwrap_or_default();
            return Err(ComputeError::Panicked(text));
        }
        match stopped {
            true => Err(ComputeError::Stopped),
            false => Ok(()),
        }
    }

    /// Opens a loop to all threads.
    ///
    /// # Safety
    /// The caller holds `turn`, and closes the loop while the closure lives.
    unsafe fn open(&self, job: Job) {
        let shared = &*self.shared;
        // SAFETY: no thread is inside and the loop is not open (the last `close` waited for that, and `turn` is held).
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        shared.failed.store(false, Ordering::Relaxed);
        let state = shared.state.load(Ordering::Relaxed);
        // SeqCst pairs with `parked` in `wait_for_loop`: either the thread sees this loop before it parks, or it is
        // seen here as parked.
        shared
            .state
            .store((state & !INSIDE).wrapping_add(NEXT) | OPEN, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            let _guard = shared.park.lock();
            shared.wake.notify_all();
        }
    }

    /// Closes the loop and waits until no thread is inside.
    fn close(&self) {
        let state = &self.shared.state;
        state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while state.load(Ordering::Acquire) & INSIDE != 0 {
            spins = spins.saturating_add(1);
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs a loop on the calling thread. A nested loop uses number 0: its scratch belongs to the loop inside, not to the one
/// around it.
fn run_alone(tasks: usize, stop: &dyn Fn() -> bool, body: impl Fn(usize, usize)) -> Result<(), ComputeError> {
    let all = catch_unwind(AssertUnwindSafe(|| {
        for task in 0..tasks {
            if stop() {
                return Err(ComputeError::Stopped);
            }
            body(0, task);
        }
        Ok(())
    }));
    all.unwrap_or_else(|panic| Err(ComputeError::Panicked(message(panic))))
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        {
            let _guard = self.shared.park.lock();
            self.shared.wake.notify_all();
        }
        for handle in self.handles.drain(..) {
            // A thread catches its panics, so there is nothing to learn from the result.
            let _ = handle.join();
        }
    }
}

/// Calls the closure behind an erased pointer.
///
/// # Safety
/// `body` points to a live `F`.
unsafe fn call_erased<F: Fn(usize, usize) + Sync>(body: *const (), thread: usize, task: usize) {
    // SAFETY: promised by the caller.
    let body = unsafe { &*body.cast::<F>() };
    body(thread, task);
}

/// Claims and runs tasks until none is left, or `stop`, asked before each, says so; returns whether it did. The calling
/// thread is inside the loop, or owns it.
fn take_tasks(shared: &Shared, thread: usize, stop: &dyn Fn() -> bool) -> bool {
    // SAFETY: the thread is inside (or is the owner), so `job` is not written meanwhile.
    let Some(job) = (unsafe { *shared.job.get() }) else {
        return false;
    };
    loop {
        let task = shared.next.fetch_add(1, Ordering::Relaxed);
        if task >= job.tasks || shared.failed.load(Ordering::Relaxed) {
            return false;
        }
        // A panic of `stop` must not leave while others are inside, so it counts as one of the task.
        match catch_unwind(AssertUnwindSafe(stop)) {
            Ok(false) => {}
            Ok(true) => {
                // The others find no task left.
                shared.next.store(job.tasks, Ordering::Relaxed);
                return true;
            }
            Err(panic) => {
                shared.panic.lock().get_or_insert_with(|| message(panic));
                shared.failed.store(true, Ordering::Release);
                return false;
            }
        }
        // SAFETY: the owner keeps the closure alive until no thread is inside.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe { (job.call)(job.body, thread, task) }));
        if let Err(panic) = result {
            shared.panic.lock().get_or_insert_with(|| message(panic));
            shared.failed.store(true, Ordering::Release);
        }
    }
}

/// The life of a pool thread.
fn work(shared: &Shared, thread: usize) {
    INSIDE_LOOP.set(true);
    let mut seen = 0u64;
    loop {
        let state = wait_for_loop(shared, seen);
        if shared.shutdown.load(Ordering::SeqCst) {
            return;
        }
        seen = state & !(INSIDE | OPEN);
        let mut current = state;
        // Enter: raise the count while the same loop is open.
        let entered = loop {
            if current & OPEN == 0 || current & !(INSIDE | OPEN) != seen {
                break false;
            }
            match shared
                .state
                .compare_exchange_weak(current, current + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break true,
                Err(now) => current = now,
            }
        };
        if entered {
            take_tasks(shared, thread, &|| false);
            shared.state.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Waits for an open loop other than `seen` (or the end of the pool) and returns its state.
fn wait_for_loop(shared: &Shared, seen: u64) -> u64 {
    let news = || {
        let state = shared.state.load(Ordering::SeqCst);
        let is_new = state & OPEN != 0 && state & !(INSIDE | OPEN) != seen;
        (is_new || shared.shutdown.load(Ordering::SeqCst)).then_some(state)
    };
    for _ in 0..SPINS {
        if let Some(state) = news() {
            return state;
        }
        std::hint::spin_loop();
    }
    let mut guard = shared.park.lock();
    shared.parked.fetch_add(1, Ordering::SeqCst);
    let state = loop {
        if let Some(state) = news() {
            break state;
        }
        shared.wake.wait(&mut guard);
    };
    shared.parked.fetch_sub(1, Ordering::SeqCst);
    state
}

/// The text of a panic.
fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_string())
}

/// Blocks all signals of the calling thread while it lives, so that threads started meanwhile inherit the mask.
struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    fn new() -> SignalsBlocked {
        // SAFETY: both sets are plain data that the calls fill; blocking signals has no other precondition.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            SignalsBlocked(before)
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: restores the mask that `new` read.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests;
