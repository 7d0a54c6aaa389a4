//! The encoder worker's main thread: messages from the rings to the compute thread, answers back.
//!
//! It waits for nothing but its own wake-ups: rings are written as far as there is room. A sender's share is bounded:
//! at most [`MOST_ITEMS`] items and [`MOST_BYTES`] of text wait or run, and while [`MOST_REPLIES`] of answers wait for
//! room in its ring, nothing more is taken from it.

use super::process::{drain, pipe, resident_bytes, wait_set};
use super::shared::{self, ACTIVE, DeviceState, FREE, LEFT, MODELS, Shared};
use crate::compute::Pool;
use crate::model::Device;
use crate::pg::settings;
use crate::serve::encoder::device;
use crate::serve::encoder::engine::{Engine, plan_ahead, threads};
use crate::serve::encoder::intake::{Intake, Taken};
use crate::serve::encoder::scheduler::Desk;
use crate::serve::ipc::exchange::{Answer, Outbox, Sender, Settings, Work};
use crate::serve::ipc::statistics::{add, get, put};
use crate::serve::ipc::threads::spawn;
use crate::serve::ipc::wire::{MAX_REQUEST, Outgoing, Reply, WHOLE_CALL, decode_request, encode_reply};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::{pg_guard, pg_sys};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MOST_ITEMS: usize = 512;
const MOST_BYTES: usize = 4 << 20;
const MOST_REPLIES: usize = 1 << 20;
/// Seconds over which tokens a second are averaged.
const WINDOW: usize = 5;
/// Longest wait for the threads on the way out: all of them look whether they are to stop, the slowest between two tensors.
const FAREWELL: Duration = Duration::from_secs(10);

/// What the worker has of one slot.
#[derive(Default)]
struct Place {
    intake: Intake,
    outgoing: Outgoing,
    sender: Option<(u64, Arc<Sender>)>,
    items: usize,
    bytes: usize,
}

impl Place {
    /// True where there was one that still had items.
    fn forget_sender(&mut self) -> bool {
        if let Some((_, sender)) = self.sender.take() {
            sender.gone.store(true, Ordering::Relaxed);
        }
        let waited = self.items > 0;
        self.outgoing.clear();
        self.items = 0;
        self.bytes = 0;
        waited
    }
}

/// Number of this process's device.
static OWN: AtomicUsize = AtomicUsize::new(0);

struct Worker {
    shared: &'static Shared,
    device: &'static DeviceState,
    number: usize,
    /// Numbers of its slots.
    slots: Vec<usize>,
    epoch: u64,
    places: Vec<Place>,
    desk: Arc<Desk>,
    next_serial: u64,
    history: VecDeque<(Instant, u64)>,
    second: Instant,
}

/// Entry of the worker's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn situ_encoder_main(argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let Some((shared, state)) = own_device(argument.value()) else {
        return;
    };
    // SAFETY: in a process that the server has set up.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0)) };
    // SAFETY: `MyProcPid` is set before any code of ours runs.
    let pid = unsafe { pg_sys::MyProcPid };
    if state
        .worker_pid
        .compare_exchange(0, pid, Ordering::SeqCst, Ordering::SeqCst)
        .is_err()
    {
        pgrx::log!("situ encoder: another worker runs, this one ends");
        return;
    }
    // SAFETY: `MyLatch` is this process's latch in the server's process table.
    state.worker_latch.store(unsafe { pg_sys::MyLatch }, Ordering::SeqCst);
    let name = state.name.get();
    if let Err(end) = serve(shared, state, &name) {
        let text = match end {
            End::Failed(text) => text,
            End::Lost(text) => {
                state.lost.store(shared::LOST, Ordering::SeqCst);
                format!("device {name} is lost: {text}")
            }
        };
        state.note_error(&text);
        pgrx::log!("situ encoder: {text}");
        // SAFETY: ends the process through the server's own exit callbacks; code 1 counts as a failed start.
        unsafe { pg_sys::proc_exit(1) };
    }
}

/// How a worker ends where nobody asked it to.
enum End {
    Failed(String),
    /// The device does not work (any more).
    Lost(String),
}

impl From<String> for End {
    fn from(text: String) -> End {
        End::Failed(text)
    }
}

fn own_device(number: usize) -> Option<(&'static Shared, &'static DeviceState)> {
    let shared = Shared::get()?;
    OWN.store(number, Ordering::Relaxed);
    Some((shared, shared.devices().get(number)?))
}

#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _argument: pg_sys::Datum) {
    let number = OWN.load(Ordering::Relaxed);
    let Some((shared, state)) = own_device(number) else {
        return;
    };
    // SAFETY: set by the server.
    let pid = unsafe { pg_sys::MyProcPid };
    if state
        .worker_pid
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
            &counters.queued_bulk,
            &counters.tokens_per_second,
        ] {
            put(counter, 0);
        }
        state.models.set("[]");
        shared::wake(&shared.launcher_latch);
        if state.is_lost() {
            // Owners of its slots look for another device.
            shared
                .slots_of(number)
                .for_each(|slot| shared::wake(&shared.slot(slot).latch));
        }
    }
}

fn follow_settings(to: &Settings) {
    to.threads.store(settings::cpu_threads(), Ordering::Relaxed);
    to.batch_tokens.store(settings::batch_tokens(), Ordering::Relaxed);
    to.model_idle.store(settings::model_idle(), Ordering::Relaxed);
    to.model_memory.store(settings::model_memory(), Ordering::Relaxed);
}

fn serve(shared: &'static Shared, state: &'static DeviceState, name: &str) -> Result<(), End> {
    let device = name.parse::<Device>().map_err(|error| error.to_string())?;
    let number = OWN.load(Ordering::Relaxed);
    if settings::test_lost_device(number) {
        return Err(End::Lost("a test wants it so".to_owned()));
    }
    // Held until the process ends: the models on a card share what was opened here.
    let _open = device::open(device, settings::kernel_cache()).map_err(End::Lost)?;
    let (read_end, write_end) = pipe()?;
    let settings = Settings::default();
    follow_settings(&settings);
    let pool = Pool::new(threads(settings::cpu_threads())).map_err(|error| error.to_string())?;
    let outbox = Outbox::new(write_end, &state.account);
    let desk = Arc::new(Desk::new(device, outbox, settings, pool));
    let failed = |error: std::io::Error| format!("cannot start a thread: {error}");
    let (compute, planner) = (Engine::new(desk.clone()), desk.clone());
    let compute = spawn("situ compute", move || compute.run()).map_err(failed)?;
    let planner = spawn("situ planner", move || plan_ahead(&planner)).map_err(failed)?;

    let counters = &state.account.counters;
    let mut worker = Worker {
        shared,
        device: state,
        number,
        slots: shared.slots_of(number).collect(),
        epoch: state.epoch.fetch_add(1, Ordering::SeqCst) + 1,
        places: std::iter::repeat_with(Place::default).take(shared.slots()).collect(),
        desk,
        next_serial: 0,
        history: VecDeque::new(),
        second: Instant::now(),
    };
    state.models.set("[]");
    put(&counters.started_at, shared::now());
    state.start_failures.store(0, Ordering::Relaxed);
    state.found();
    for number in &worker.slots {
        // Owners whose requests the last worker had see the new epoch and send them again.
        shared::wake(&shared.slot(*number).latch);
    }
    pgrx::log!("situ encoder: ready on {name}, worker {}", worker.epoch);

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
            // Whoever reloads the configuration says that the device is to be used.
            state.proved();
            if settings::test_lost_device(number) {
                worker.desk.lose_device("a test wants it so");
            }
        }
        worker.round();
        if let Some(why) = worker.desk.lost() {
            farewell(&worker.desk, &[&compute, &planner]);
            return Err(End::Lost(why.to_owned()));
        }
        if compute.is_finished() || planner.is_finished() {
            farewell(&worker.desk, &[&compute, &planner]);
            return Err(End::Failed("a thread of the encoder ended".to_owned()));
        }
        let mut event = pg_sys::WaitEvent::default();
        // SAFETY: `set` was made above, with room for one event.
        unsafe { pg_sys::WaitEventSetWait(set, 1000, &mut event, 1, shared::wait_event()) };
    }
    pgrx::log!("situ encoder: ends on request");
    farewell(&worker.desk, &[&compute, &planner]);
    Ok(())
}

/// Ends the threads, those that load and calibrate too: none of them may run while the process takes itself apart.
fn farewell(desk: &Desk, threads: &[&std::thread::JoinHandle<()>]) {
    desk.end();
    let since = Instant::now();
    while !(desk.background.is_over() && threads.iter().all(|thread| thread.is_finished())) {
        if since.elapsed() > FAREWELL {
            pgrx::log!("situ encoder: a thread does not end");
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Worker {
    /// Looks once at everything.
    fn round(&mut self) {
        for answer in self.desk.outbox.take() {
            self.accept(answer);
        }
        let mut work = Vec::new();
        for at in 0..self.slots.len() {
            self.look(self.slots[at], &mut work);
        }
        if !work.is_empty() {
            if settings::test_lost_device(self.number + settings::LOST_WITH_WORK) {
                self.desk.lose_device("a test wants it so once there is work");
            }
            self.desk.push(work);
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.publish();
        }
    }

    fn accept(&mut self, answer: Answer) {
        let counters = &self.device.account.counters;
        add(&counters.requests, 1);
        if let Some(error) = &answer.error {
            add(&counters.errors, 1);
            self.device.note_error(error);
            pgrx::log!("situ encoder: {error}");
        } else {
            self.device.proved();
        }
        let place = &mut self.places[answer.sender.slot];
        if place
            .sender
            .as_ref()
            .is_some_and(|(_, sender)| sender.serial == answer.sender.serial)
        {
            place.items = place.items.saturating_sub(1);
            place.bytes = place.bytes.saturating_sub(answer.bytes);
            place.outgoing.push(answer.message);
        }
    }

    /// Serves one slot: replies out, requests in.
    fn look(&mut self, number: usize, work: &mut Vec<Work>) {
        let (shared, place) = (self.shared, &mut self.places[number]);
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
        let requests = shared.requests(number);
        let owner = slot.generation.load(Ordering::SeqCst);
        while place.items < MOST_ITEMS && place.bytes < MOST_BYTES && place.outgoing.bytes() < MOST_REPLIES {
            let request = match place
                .intake
                .next(&requests, owner, MAX_REQUEST, decode_request, &mut moved)
            {
                Taken::Nothing => break,
                Taken::Request(request) => request,
                Taken::Broken(error) => {
                    let text = format!("the encoder cannot read a request: {error}");
                    self.device.note_error(&text);
                    pgrx::log!("situ encoder: slot {number}: {text}");
                    let refused = Reply::Failed(error.failure(text));
                    if let Ok(message) = encode_reply(WHOLE_CALL, &refused) {
                        place.outgoing.push(message);
                        moved |= place.outgoing.flush(&shared.replies(number));
                    }
                    break;
                }
            };
            if place
                .sender
                .as_ref()
                .is_none_or(|(generation, _)| *generation != request.generation)
            {
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
            place.items += 1;
            place.bytes += request.item.bytes();
            work.push(Work {
                sender: sender.clone(),
                number: request.number,
                lane: request.lane,
                model: request.model,
                item: request.item,
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
        self.device.models.set(&self.desk.describe_models(MODELS));
        self.history.push_back((self.second, get(&counters.tokens)));
        if self.history.len() > WINDOW + 1 {
            self.history.pop_front();
        }
        if let (Some((since, first)), Some((until, last))) = (self.history.front(), self.history.back())
            && until > since
        {
            let speed = (last - first) as f64 / (*until - *since).as_secs_f64();
            put(&counters.tokens_per_second, speed as u64);
        }
    }
}
