//! The main thread of a worker, encoder's and LLM's: requests from the rings to the threads that compute, answers back.
//!
//! It waits for nothing but its own wake-ups: rings are written as far as there is room. A sender's share is bounded by
//! the service's [`Limits`].

use super::process::{drain, resident_bytes, wait_set};
use super::shared::{self, ABANDONED, ACTIVE, DeviceState, FREE, Shared};
use crate::serve::ipc::intake::{Intake, Taken};
use crate::serve::ipc::queues::{Answer, Outbox, Sender};
use crate::serve::ipc::statistics::{get, put};
use crate::serve::ipc::wire::{BadMessage, Outgoing};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::{pg_guard, pg_sys};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Seconds over which tokens a second are averaged.
const WINDOW: usize = 5;
/// Longest wait for the threads on the way out: all of them look whether they are to stop, the slowest between two tensors.
const FAREWELL: Duration = Duration::from_secs(10);

/// What waits or runs for one slot at most.
pub struct Limits {
    pub items: usize,
    /// Bytes of the items' texts.
    pub bytes: usize,
    /// Bytes of answers that wait for room in the ring.
    pub replies: usize,
}

/// A request as the loop knows it.
pub trait Request: Sized {
    /// Most bytes of its message.
    const MOST: usize;

    /// Reads a message.
    fn decode(message: &[u8]) -> Result<Self, BadMessage>;
    /// Which owner of the slot sent it.
    fn generation(&self) -> u64;
    /// Bytes that count in [`Limits::bytes`].
    fn bytes(&self) -> usize;
}

/// What a worker does with requests.
pub trait Service {
    type Request: Request;
    /// The worker in the log.
    const NAME: &'static str;
    /// Who cannot read a broken request.
    const READER: &'static str;
    const LIMITS: Limits;

    fn outbox(&self) -> &Outbox;
    /// The message that refuses a whole call, where there is one.
    fn refuse(error: &BadMessage, text: String) -> Option<Vec<u8>>;
    /// Takes requests in.
    fn push(&self, requests: Vec<(Arc<Sender>, Self::Request)>);
    /// A sender with unfinished items has left.
    fn sender_left(&self);
    /// An answer goes out; returns how many of the sender's items it ends.
    fn answered(&self, device: &DeviceState, answer: &Answer) -> usize;
    /// The configuration was read again.
    fn reload(&self, device: &DeviceState);
    /// Fails where the worker cannot go on.
    fn check(&self) -> Result<(), End>;
    /// What is in memory, as JSON.
    fn describe(&self) -> String;
    /// Tells all threads to end.
    fn end(&self);
    /// Whether all threads have ended.
    fn is_over(&self) -> bool;
}

/// How a worker ends where nobody asked it to.
pub enum End {
    Failed(String),
    /// The device does not work (any more).
    Lost(String),
}

impl From<String> for End {
    fn from(text: String) -> End {
        End::Failed(text)
    }
}

/// The queue and the number of the device that this process works for.
static OWN: OnceLock<(&'static Shared, usize)> = OnceLock::new();

/// What a worker process works for.
#[derive(Clone, Copy)]
pub struct Own {
    pub shared: &'static Shared,
    pub number: usize,
    pub device: &'static DeviceState,
}

/// Makes this process the worker of a device and runs `serve`, until that returns. Ends the process with an error where it
/// fails.
pub fn main(name: &str, shared: Option<&'static Shared>, number: usize, serve: impl FnOnce(Own) -> Result<(), End>) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let Some((shared, device)) = shared.and_then(|shared| Some((shared, shared.devices().get(number)?))) else {
        return;
    };
    let _ = OWN.set((shared, number));
    // SAFETY: in a process that the server has set up.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0)) };
    // SAFETY: `MyProcPid` is set before any code of ours runs.
    let pid = unsafe { pg_sys::MyProcPid };
    let running = &device.worker_pid;
    if running
        .compare_exchange(0, pid, Ordering::SeqCst, Ordering::SeqCst)
        .is_err()
    {
        pgrx::log!("{name}: another worker runs, this one ends");
        return;
    }
    // SAFETY: `MyLatch` is this process's latch in the server's process table.
    device.worker_latch.store(unsafe { pg_sys::MyLatch }, Ordering::SeqCst);
    let own = Own { shared, number, device };
    if let Err(end) = serve(own) {
        let text = match end {
            End::Failed(text) => text,
            End::Lost(text) => {
                device.lost.store(shared::LOST, Ordering::SeqCst);
                format!("device {} is lost: {text}", device.name.get())
            }
        };
        device.note_error(&text);
        pgrx::log!("{name}: {text}");
        // SAFETY: ends the process through the server's own exit callbacks; code 1 counts as a failed start.
        unsafe { pg_sys::proc_exit(1) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _argument: pg_sys::Datum) {
    let Some((shared, number)) = OWN.get().copied() else {
        return;
    };
    let Some(device) = shared.devices().get(number) else {
        return;
    };
    // SAFETY: set by the server.
    let pid = unsafe { pg_sys::MyProcPid };
    let running = &device.worker_pid;
    if running
        .compare_exchange(pid, 0, Ordering::SeqCst, Ordering::SeqCst)
        .is_err()
    {
        return;
    }
    let counters = &device.account.counters;
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
    device.models.set("[]");
    shared::wake(&shared.launcher_latch);
    if device.is_lost() {
        // Owners of its slots look for another device.
        shared
            .slots_of(number)
            .for_each(|slot| shared::wake(&shared.slot(slot).latch));
    }
}

/// What the worker has of one slot.
#[derive(Default)]
struct SlotState {
    intake: Intake,
    outgoing: Outgoing,
    /// The owner's generation, and the owner.
    sender: Option<(u64, Arc<Sender>)>,
    /// Items that are not answered yet, and bytes of their texts.
    items: usize,
    bytes: usize,
}

impl SlotState {
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

    fn takes_more(&self, limits: &Limits) -> bool {
        self.items < limits.items && self.bytes < limits.bytes && self.outgoing.bytes() < limits.replies
    }
}

/// Serves the slots of a device until the process is asked to end.
pub fn run<S: Service>(own: Own, read_end: &OwnedFd, service: S) -> Result<(), End> {
    let mut worker = Worker::start(own, service);
    let set = wait_set(read_end);
    loop {
        // SAFETY: this process's own latch.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        drain(read_end);
        if BackgroundWorker::sigterm_received() {
            break;
        }
        if BackgroundWorker::sighup_received() {
            // SAFETY: outside of a transaction, as the server's own workers do.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            worker.service.reload(own.device);
        }
        worker.round();
        if let Err(end) = worker.service.check() {
            farewell(&worker.service);
            return Err(end);
        }
        let mut event = pg_sys::WaitEvent::default();
        // SAFETY: `set` was made above, with room for one event.
        unsafe { pg_sys::WaitEventSetWait(set, 1000, &mut event, 1, shared::wait_event()) };
    }
    pgrx::log!("{}: ends on request", S::NAME);
    farewell(&worker.service);
    Ok(())
}

/// Ends the threads: none of them may run while the process takes itself apart.
fn farewell<S: Service>(service: &S) {
    service.end();
    let since = Instant::now();
    while !service.is_over() {
        if since.elapsed() > FAREWELL {
            pgrx::log!("{}: a thread does not end", S::NAME);
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Worker<S: Service> {
    own: Own,
    service: S,
    epoch: u64,
    /// By the number of the slot; of other devices' slots too, which stay empty.
    slots: Vec<SlotState>,
    next_serial: u64,
    /// Counts of tokens in the last seconds.
    history: VecDeque<(Instant, u64)>,
    second: Instant,
}

impl<S: Service> Worker<S> {
    /// Tells everybody that the worker is there.
    fn start(own: Own, service: S) -> Worker<S> {
        let Own { shared, number, device } = own;
        let epoch = device.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        device.models.set("[]");
        put(&device.account.counters.started_at, shared::now());
        device.start_failures.store(0, Ordering::Relaxed);
        device.found();
        for slot in shared.slots_of(number) {
            // Owners whose requests the last worker had see the new epoch and send them again.
            shared::wake(&shared.slot(slot).latch);
        }
        pgrx::log!("{}: ready on {}, worker {epoch}", S::NAME, device.name.get());
        Worker {
            own,
            service,
            epoch,
            slots: std::iter::repeat_with(SlotState::default)
                .take(shared.slots())
                .collect(),
            next_serial: 0,
            history: VecDeque::new(),
            second: Instant::now(),
        }
    }

    /// Looks once at everything.
    fn round(&mut self) {
        for answer in self.service.outbox().take() {
            self.accept(answer);
        }
        let mut requests = Vec::new();
        for number in self.own.shared.slots_of(self.own.number) {
            self.look(number, &mut requests);
        }
        if !requests.is_empty() {
            self.service.push(requests);
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.publish();
        }
    }

    fn accept(&mut self, answer: Answer) {
        if let Some(error) = &answer.error {
            self.own.device.note_error(error);
            pgrx::log!("{}: {error}", S::NAME);
        }
        let ended = self.service.answered(self.own.device, &answer);
        let Some(state) = self.slots.get_mut(answer.sender.slot) else {
            return;
        };
        let current = state.sender.as_ref().map(|(_, sender)| sender.serial);
        if current == Some(answer.sender.serial) {
            state.items = state.items.saturating_sub(ended);
            state.bytes = state.bytes.saturating_sub(answer.bytes);
            if !answer.message.is_empty() {
                state.outgoing.push(answer.message);
            }
        }
    }

    /// Serves one slot: replies out, requests in.
    fn look(&mut self, number: usize, requests: &mut Vec<(Arc<Sender>, S::Request)>) {
        let shared = self.own.shared;
        let slot = shared.slot(number);
        match slot.state.load(Ordering::SeqCst) {
            ABANDONED => return self.empty(number),
            ACTIVE if slot.epoch.load(Ordering::SeqCst) == self.epoch => {}
            _ => return,
        }
        let Some(state) = self.slots.get_mut(number) else {
            return;
        };
        let mut moved = state.outgoing.flush(&shared.replies(number));
        let ring = shared.requests(number);
        let owner = slot.generation.load(Ordering::SeqCst);
        while let Some(state) = self.slots.get_mut(number).filter(|state| state.takes_more(&S::LIMITS)) {
            let most = S::Request::MOST;
            match state.intake.next(&ring, owner, most, S::Request::decode, &mut moved) {
                Taken::Nothing => break,
                Taken::Request(request) => requests.extend(self.admit(number, request)),
                Taken::Broken(error) => {
                    let text = format!("{} cannot read a request: {error}", S::READER);
                    self.own.device.note_error(&text);
                    pgrx::log!("{}: slot {number}: {text}", S::NAME);
                    if let Some(message) = S::refuse(&error, text) {
                        state.outgoing.push(message);
                        moved |= state.outgoing.flush(&shared.replies(number));
                    }
                    break;
                }
            }
        }
        if moved {
            shared::wake(&slot.latch);
        }
    }

    /// Gives an abandoned slot back.
    fn empty(&mut self, number: usize) {
        let shared = self.own.shared;
        if let Some(state) = self.slots.get_mut(number) {
            if state.forget_sender() {
                self.service.sender_left();
            }
            state.intake.clear();
        }
        shared.requests(number).reset();
        shared.replies(number).reset();
        shared.slot(number).state.store(FREE, Ordering::SeqCst);
        shared.slot_freed();
    }

    /// Counts a request and finds its sender, a new one where the slot has another owner than before.
    fn admit(&mut self, number: usize, request: S::Request) -> Option<(Arc<Sender>, S::Request)> {
        let slot = self.own.shared.slot(number);
        let state = self.slots.get_mut(number)?;
        let known = state.sender.as_ref().map(|(generation, _)| *generation);
        if known != Some(request.generation()) {
            if state.forget_sender() {
                self.service.sender_left();
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
            state.sender = Some((request.generation(), Arc::new(sender)));
        }
        state.items += 1;
        state.bytes += request.bytes();
        let (_, sender) = state.sender.as_ref()?;
        Some((sender.clone(), request))
    }

    /// Once a second: what is measured over time.
    fn publish(&mut self) {
        self.second = Instant::now();
        let counters = &self.own.device.account.counters;
        put(&counters.resident_bytes, resident_bytes());
        self.own.device.models.set(&self.service.describe());
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
