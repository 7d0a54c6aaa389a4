//! The LLM worker's main thread: requests from the rings to the engine, replies back.
//!
//! It waits for nothing but its own wake-ups: rings are written as far as there is room. The owner of a slot has one item
//! in work. Tokens that its ring has no room for wait here, at most as many as the answer may have.

use crate::pg::service::process::{drain, pipe, resident_bytes, wait_set};
use crate::pg::service::shared::{self, ACTIVE, DeviceState, FREE, LEFT, Shared};
use crate::pg::settings;
use crate::serve::encoder::intake::{Intake, Taken};
use crate::serve::ipc::exchange::{Answer, Outbox, Sender};
use crate::serve::ipc::statistics::{get, put};
use crate::serve::ipc::threads::spawn;
use crate::serve::ipc::wire::{Outgoing, WHOLE_CALL};
use crate::serve::llm::engine::Engine;
use crate::serve::llm::inbox::{Desk, Job, Settings};
use crate::serve::llm::wire::{MAX_REQUEST, Reply, decode_request, encode_reply};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::{pg_guard, pg_sys};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Seconds over which tokens a second are averaged.
const WINDOW: usize = 5;
/// Longest wait for the engine and what it has started on the way out.
const FAREWELL: Duration = Duration::from_secs(10);

/// What the worker has of one slot.
#[derive(Default)]
struct Place {
    intake: Intake,
    outgoing: Outgoing,
    sender: Option<(u64, Arc<Sender>)>,
}

impl Place {
    /// True where there was one.
    fn forget_sender(&mut self) -> bool {
        self.outgoing.clear();
        match self.sender.take() {
            Some((_, sender)) => {
                sender.gone.store(true, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }
}

struct Worker {
    shared: &'static Shared,
    device: &'static DeviceState,
    epoch: u64,
    places: Vec<Place>,
    desk: Arc<Desk>,
    next_serial: u64,
    history: VecDeque<(Instant, u64)>,
    second: Instant,
}

fn own() -> Option<(&'static Shared, &'static DeviceState)> {
    let shared = Shared::llm()?;
    Some((shared, shared.devices().first()?))
}

/// Entry of the worker's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn situ_llm_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let Some((shared, state)) = own() else { return };
    // SAFETY: in a process that the server has set up.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0)) };
    // SAFETY: `MyProcPid` is set before any code of ours runs.
    let pid = unsafe { pg_sys::MyProcPid };
    let running = &state.worker_pid;
    if running
        .compare_exchange(0, pid, Ordering::SeqCst, Ordering::SeqCst)
        .is_err()
    {
        pgrx::log!("situ llm: another worker runs, this one ends");
        return;
    }
    // SAFETY: `MyLatch` is this process's latch in the server's process table.
    state.worker_latch.store(unsafe { pg_sys::MyLatch }, Ordering::SeqCst);
    if let Err(text) = serve(shared, state) {
        state.note_error(&text);
        pgrx::log!("situ llm: {text}");
        // SAFETY: ends the process through the server's own exit callbacks; code 1 counts as a failed start.
        unsafe { pg_sys::proc_exit(1) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _argument: pg_sys::Datum) {
    let Some((shared, state)) = own() else { return };
    // SAFETY: set by the server.
    let pid = unsafe { pg_sys::MyProcPid };
    let running = &state.worker_pid;
    if running
        .compare_exchange(pid, 0, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
    {
        let counters = &state.account.counters;
        for counter in [
            &counters.started_at,
            &counters.models,
            &counters.model_bytes,
            &counters.resident_bytes,
            &counters.queued_queries,
            &counters.tokens_per_second,
        ] {
            put(counter, 0);
        }
        state.models.set("[]");
        shared::wake(&shared.launcher_latch);
    }
}

fn follow_settings(to: &Settings) {
    to.threads.store(settings::llm_threads(), Ordering::Relaxed);
    to.memory.store(settings::llm_memory(), Ordering::Relaxed);
    to.idle.store(settings::model_idle(), Ordering::Relaxed);
}

fn serve(shared: &'static Shared, state: &'static DeviceState) -> Result<(), String> {
    let (read_end, write_end) = pipe()?;
    let settings = Settings::default();
    follow_settings(&settings);
    let desk = Arc::new(Desk::new(Outbox::new(write_end, &state.account), settings));
    let engine = Engine::new(desk.clone());
    let engine = spawn("situ llm engine", move || engine.run());
    let engine = engine.map_err(|error| format!("cannot start a thread: {error}"))?;
    let mut worker = Worker {
        shared,
        device: state,
        epoch: state.epoch.fetch_add(1, Ordering::SeqCst) + 1,
        places: std::iter::repeat_with(Place::default).take(shared.slots()).collect(),
        desk,
        next_serial: 0,
        history: VecDeque::new(),
        second: Instant::now(),
    };
    put(&state.account.counters.started_at, shared::now());
    state.start_failures.store(0, Ordering::Relaxed);
    for number in 0..shared.slots() {
        // Owners whose requests the last worker had see the new epoch.
        shared::wake(&shared.slot(number).latch);
    }
    pgrx::log!("situ llm: ready, worker {}", worker.epoch);

    let set = wait_set(&read_end);
    loop {
        // SAFETY: this process's own latch.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        drain(&read_end);
        if BackgroundWorker::sigterm_received() {
            break;
        }
        if BackgroundWorker::sighup_received() {
            // SAFETY: outside of a transaction, as the server's own workers do.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            follow_settings(&worker.desk.settings);
        }
        worker.round();
        if engine.is_finished() {
            return Err("the engine of the LLM worker ended".to_owned());
        }
        let mut event = pg_sys::WaitEvent::default();
        // SAFETY: `set` was made above, with room for one event.
        unsafe { pg_sys::WaitEventSetWait(set, 1000, &mut event, 1, shared::wait_event()) };
    }
    pgrx::log!("situ llm: ends on request");
    worker.desk.end();
    let since = Instant::now();
    while !engine.is_finished() && since.elapsed() < FAREWELL {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Worker {
    /// Looks once at everything.
    fn round(&mut self) {
        for answer in self.desk.outbox.take() {
            self.accept(answer);
        }
        let mut jobs = Vec::new();
        for number in 0..self.places.len() {
            self.look(number, &mut jobs);
        }
        if !jobs.is_empty() {
            self.desk.push(jobs);
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.publish();
        }
    }

    fn accept(&mut self, answer: Answer) {
        if let Some(error) = &answer.error {
            self.device.note_error(error);
            pgrx::log!("situ llm: {error}");
        }
        let Some(place) = self.places.get_mut(answer.sender.slot) else {
            return;
        };
        let current = place.sender.as_ref().map(|(_, sender)| sender.serial);
        if current == Some(answer.sender.serial) && !answer.message.is_empty() {
            place.outgoing.push(answer.message);
        }
    }

    /// Serves one slot: replies out, requests in.
    fn look(&mut self, number: usize, jobs: &mut Vec<Job>) {
        let shared = self.shared;
        let Some(place) = self.places.get_mut(number) else {
            return;
        };
        let slot = shared.slot(number);
        match slot.state.load(Ordering::SeqCst) {
            LEFT => {
                if place.forget_sender() {
                    self.desk.sender_left();
                }
                place.intake.clear();
                shared.requests(number).reset();
                shared.replies(number).reset();
                slot.state.store(FREE, Ordering::SeqCst);
                shared.slot_freed();
                return;
            }
            ACTIVE if slot.epoch.load(Ordering::SeqCst) == self.epoch => {}
            _ => return,
        }
        let mut moved = place.outgoing.flush(&shared.replies(number));
        let owner = slot.generation.load(Ordering::SeqCst);
        loop {
            let requests = shared.requests(number);
            let request = match place
                .intake
                .next(&requests, owner, MAX_REQUEST, decode_request, &mut moved)
            {
                Taken::Nothing => break,
                Taken::Request(request) => request,
                Taken::Broken(error) => {
                    let text = format!("the LLM worker cannot read a request: {error}");
                    self.device.note_error(&text);
                    pgrx::log!("situ llm: slot {number}: {text}");
                    let refused = Reply::Failed(error.failure(text));
                    if let Ok(message) = encode_reply(WHOLE_CALL, &refused) {
                        place.outgoing.push(message);
                        moved |= place.outgoing.flush(&shared.replies(number));
                    }
                    break;
                }
            };
            let known = place.sender.as_ref().map(|(generation, _)| *generation);
            if known != Some(request.generation) {
                if place.forget_sender() {
                    self.desk.sender_left();
                }
                let sender = Sender {
                    slot: number,
                    serial: self.next_serial,
                    database: slot.database.load(Ordering::Relaxed),
                    user: slot.user.load(Ordering::Relaxed),
                    gone: false.into(),
                    progress: &slot.progress,
                };
                self.next_serial += 1;
                place.sender = Some((request.generation, Arc::new(sender)));
            }
            let Some((_, sender)) = &place.sender else { break };
            jobs.push(Job {
                sender: sender.clone(),
                number: request.number,
                model: request.model,
                item: request.item,
                since: Instant::now(),
            });
        }
        if moved {
            shared::wake(&slot.latch);
        }
    }

    /// Once a second: what is measured over time.
    fn publish(&mut self) {
        self.second = Instant::now();
        let counters = &self.device.account.counters;
        put(&counters.resident_bytes, resident_bytes());
        self.device.models.set(&self.desk.described.lock());
        self.history.push_back((self.second, get(&counters.tokens)));
        if self.history.len() > WINDOW + 1 {
            self.history.pop_front();
        }
        if let (Some((since, first)), Some((until, last))) = (self.history.front(), self.history.back())
            && until > since
        {
            let speed = last.saturating_sub(*first) as f64 / (*until - *since).as_secs_f64();
            put(&counters.tokens_per_second, speed as u64);
        }
    }
}
