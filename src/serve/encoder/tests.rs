//! Scheduler, planner and compute thread together, without a server: who is answered, how often a text is encoded, and what
//! happens when senders leave.

use super::engine::{Engine, plan_ahead};
use super::scheduler::Scheduler;
use crate::compute::Pool;
use crate::fixtures::minilm;
use crate::model::{Device, Encoder, Manifest, Precision, Role};
use crate::serve::ipc::queues::{Account, Answer, Outbox, Sender, Settings, Work};
use crate::serve::ipc::statistics::{Progress, get};
use crate::serve::ipc::threads::spawn;
use crate::serve::ipc::wire::{Item, Lane, ModelKey, Reply, Report, decode_reply};
use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A worker without a server.
struct Service {
    scheduler: Arc<Scheduler>,
    account: &'static Account,
    threads: Vec<std::thread::JoinHandle<()>>,
    _pipe: OwnedFd,
    key: ModelKey,
    answers: HashMap<(usize, u64), Reply>,
}

impl Service {
    /// `None` where there is no model. Nothing runs before [`Service::start`].
    fn new() -> Option<Service> {
        let dir = minilm()?;
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors, which are ours then.
        let (read, write) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK), 0);
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        let account: &'static Account = Box::leak(Box::default());
        let outbox = Outbox::new(write, account);
        let pool = Pool::new(2).expect("threads");
        Some(Service {
            scheduler: Arc::new(Scheduler::new(Device::Cpu, outbox, Settings::default(), pool)),
            account,
            threads: Vec::new(),
            _pipe: read,
            key: ModelKey {
                root: dir.parent().expect("a parent").to_string_lossy().into_owned(),
                path: dir.file_name().expect("a name").to_string_lossy().into_owned(),
                fingerprint: Manifest::read(&dir).expect("a manifest").fingerprint,
                precision: Precision::F32,
            },
            answers: HashMap::new(),
        })
    }

    fn start(&mut self) {
        let (compute, planner) = (Engine::new(self.scheduler.clone()), self.scheduler.clone());
        self.threads
            .push(spawn("compute", move || compute.run()).expect("a thread"));
        self.threads
            .push(spawn("planner", move || plan_ahead(&planner)).expect("a thread"));
    }

    fn send(&self, sender: &Arc<Sender>, lane: Lane, items: impl IntoIterator<Item = Item>) {
        let work = items.into_iter().enumerate().map(|(number, item)| Work {
            sender: sender.clone(),
            number: number as u64,
            lane,
            model: self.key.clone(),
            item,
        });
        self.scheduler.push(work.collect());
    }

    fn leave(&self, sender: &Sender) {
        sender.gone.store(true, Ordering::SeqCst);
        self.scheduler.sender_left();
    }

    /// Waits for answers until there are as many.
    fn wait(&mut self, count: usize) {
        let since = Instant::now();
        while self.answers.len() < count {
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "{} of {count} answers",
                self.answers.len()
            );
            for Answer { sender, message, .. } in self.scheduler.outbox.take() {
                let (number, reply) = decode_reply(&message[4..]).expect("a reply");
                let before = self.answers.insert((sender.slot, number), reply);
                assert!(
                    before.is_none(),
                    "item {number} of sender {} is answered twice",
                    sender.slot
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.scheduler.end();
        self.threads
            .drain(..)
            .for_each(|thread| thread.join().expect("a thread ends"));
    }
}

fn sender(slot: usize) -> Arc<Sender> {
    sender_as(slot, 10)
}

fn sender_as(slot: usize, user: u32) -> Arc<Sender> {
    let progress: &'static Progress = Box::leak(Box::default());
    Arc::new(Sender {
        slot,
        serial: slot as u64,
        database: 1,
        user,
        gone: false.into(),
        progress,
    })
}

fn text(number: usize) -> Item {
    Item::Embed {
        role: Role::Plain,
        text: format!("Text number {number} tells of a harbour with {number} ships in it."),
    }
}

#[test]
fn equal_texts_of_many_senders_are_encoded_once() {
    let Some(mut service) = Service::new() else { return };
    let senders: Vec<_> = (0..8).map(sender).collect();
    for sender in &senders {
        service.send(sender, Lane::Bulk, (0..50).map(text));
    }
    service.start();
    service.wait(8 * 50);
    let counters = &service.account.counters;
    assert_eq!(get(&counters.vectors), 50, "a vector for each text");
    assert_eq!(get(&counters.shared), 7 * 50);
    let encoder = Encoder::open(&minilm().expect("a model")).expect("the model");
    let pool = Pool::new(1).expect("a thread");
    for number in 0..50 {
        let Item::Embed { role, text } = text(number) else {
            return;
        };
        let sequence = encoder.text(role, &text).expect("tokens");
        let expected = encoder.encode(&pool, &[sequence]).expect("a vector").remove(0);
        for slot in 0..8 {
            let reply = &service.answers[&(slot, number as u64)];
            assert_eq!(
                *reply,
                Reply::Vector(expected.clone()),
                "text {number} of sender {slot}"
            );
        }
    }
}

#[test]
fn whether_anothers_text_is_in_work_shows_in_nothing() {
    let Some(mut service) = Service::new() else { return };
    let (one, two) = (sender_as(0, 10), sender_as(1, 11));
    for sender in [&one, &two] {
        service.send(sender, Lane::Bulk, (0..20).map(text));
    }
    service.start();
    service.wait(40);
    let counters = &service.account.counters;
    assert_eq!((get(&counters.vectors), get(&counters.shared)), (40, 0));
    let tokens = |sender: &Sender| sender.progress.tokens.load(Ordering::Relaxed);
    assert!(tokens(&one) > 0 && tokens(&one) == tokens(&two));
    (0..20).for_each(|number| assert_eq!(service.answers[&(0, number)], service.answers[&(1, number)]));
}

#[test]
fn a_worker_that_ends_waits_for_loads_and_calibrations() {
    let Some(mut service) = Service::new() else { return };
    service.start();
    service.send(&sender(0), Lane::Query, [Item::Calibrate { again: true }]);
    service.send(&sender(1), Lane::Query, [text(0)]);
    let over = |service: &Service| service.scheduler.background.is_over();
    let since = Instant::now();
    while over(&service) {
        assert!(since.elapsed() < Duration::from_secs(60), "nothing began");
        std::thread::sleep(Duration::from_millis(1));
    }
    service.scheduler.end();
    let since = Instant::now();
    while !over(&service) {
        assert!(since.elapsed() < Duration::from_secs(5), "a thread does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        service.scheduler.outbox.take().is_empty(),
        "what was stopped is not answered"
    );
}

#[test]
fn those_who_share_a_text_do_not_depend_on_each_other() {
    let Some(mut service) = Service::new() else { return };
    let senders: Vec<_> = (0..6).map(sender).collect();
    for sender in &senders {
        service.send(sender, Lane::Bulk, (0..200).map(text));
    }
    service.start();
    // The first to be planned leads, whoever it is: all but the last leave while their texts wait and run.
    std::thread::sleep(Duration::from_millis(300));
    for sender in &senders[..5] {
        service.leave(sender);
        std::thread::sleep(Duration::from_millis(20));
    }
    let own = |service: &Service| service.answers.keys().filter(|(slot, _)| *slot == 5).count();
    let since = Instant::now();
    while own(&service) < 200 {
        let count = service.answers.len() + 1;
        assert!(since.elapsed() < Duration::from_secs(60));
        service.wait(count);
    }
    assert!(service.answers.values().all(|reply| matches!(reply, Reply::Vector(_))));
}

#[test]
fn a_query_does_not_wait_behind_the_same_text_in_bulk() {
    let Some(mut service) = Service::new() else { return };
    let (bulk, asker) = (sender(0), sender(1));
    let long = |number: usize| Item::Embed {
        role: Role::Plain,
        text: format!("{number} {}", "many words about ships ".repeat(60)),
    };
    service.start();
    service.send(&bulk, Lane::Bulk, (0..300).map(long).chain([text(7)]));
    std::thread::sleep(Duration::from_millis(500));
    service.send(&asker, Lane::Query, [text(7)]);
    while !service.answers.contains_key(&(1, 0)) {
        let count = service.answers.len() + 1;
        service.wait(count);
    }
    assert!(
        service.answers.len() < 250,
        "the query came after {} others",
        service.answers.len()
    );
    service.wait(302);
    assert_eq!(service.answers[&(1, 0)], service.answers[&(0, 300)]);
}

/// Words enough for some two hundred tokens.
fn long(number: usize) -> Item {
    Item::Embed {
        role: Role::Plain,
        text: format!("{number} {}", "many words about ships ".repeat(50)),
    }
}

#[test]
fn queries_are_answered_while_a_batch_of_bulk_work_runs() {
    let Some(mut service) = Service::new() else { return };
    // One batch for everything: some 16,000 tokens, a second or more. How much one waits for is known from the second on.
    service
        .scheduler
        .settings
        .batch_tokens
        .store(100_000, Ordering::Relaxed);
    service.send(&sender(0), Lane::Bulk, [text(0)]);
    service.start();
    service.wait(1);
    let (bulk, counters) = (sender(1), &service.account.counters);
    let runs = |sender: &Sender| sender.progress.running.load(Ordering::Relaxed);
    service.send(&bulk, Lane::Bulk, (0..80).map(long));
    let since = Instant::now();
    while runs(&bulk) < 70 {
        assert!(since.elapsed() < Duration::from_secs(60), "the batch does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (batches, running) = (get(&counters.batches), runs(&bulk));
    for slot in 2..5 {
        service.send(&sender(slot), Lane::Query, [text(slot)]);
        let count = service.answers.len() + 1;
        service.wait(count);
        assert!(service.answers.contains_key(&(slot, 0)), "bulk work was answered first");
    }
    assert_eq!(runs(&bulk), running, "the batch still runs");
    assert_eq!(
        get(&counters.batches) - batches,
        3,
        "each query ran by itself in the midst of it"
    );
    service.wait(84);
    // What ran in the midst of something else, and what was interrupted, has the same bits as alone.
    let encoder = Encoder::open(&minilm().expect("a model")).expect("the model");
    let pool = Pool::new(1).expect("a thread");
    let check = |item: Item, of: (usize, u64)| {
        let Item::Embed { role, text } = item else { return };
        let sequence = encoder.text(role, &text).expect("tokens");
        let expected = encoder.encode(&pool, &[sequence]).expect("a vector").remove(0);
        assert_eq!(service.answers[&of], Reply::Vector(expected), "{of:?}");
    };
    (2..5).for_each(|slot| check(text(slot), (slot, 0)));
    (0..80)
        .step_by(9)
        .for_each(|number| check(long(number), (1, number as u64)));
}

#[test]
fn bulk_work_has_its_turn_however_many_queries_come() {
    let Some(mut service) = Service::new() else { return };
    // Each query is a batch of its own.
    service.scheduler.settings.batch_tokens.store(1, Ordering::Relaxed);
    service.send(&sender(0), Lane::Bulk, (0..3).map(text));
    for slot in 1..5 {
        service.send(
            &sender(slot),
            Lane::Query,
            (0..100).map(|number| text(slot * 100 + number)),
        );
    }
    service.start();
    let bulk = |service: &Service| service.answers.keys().filter(|(slot, _)| *slot == 0).count();
    while bulk(&service) < 3 {
        let count = service.answers.len() + 1;
        service.wait(count);
    }
    // Each of the three batches lets pass 32 before it and 32 in its midst at most.
    let queries = service.answers.len() - 3;
    assert!(queries <= 3 * 64 + 8, "{queries} queries before the last bulk text");
    service.wait(403);
}

#[test]
fn models_are_warmed_measured_and_dropped() {
    let Some(mut service) = Service::new() else { return };
    service.start();
    service.send(&sender(0), Lane::Query, [Item::Warm]);
    service.wait(1);
    let Reply::Report(Report::Warmed {
        seconds,
        bytes,
        precision,
        tokens_per_second,
    }) = service.answers[&(0, 0)]
    else {
        panic!("{:?}", service.answers);
    };
    assert!(seconds > 0.0 && bytes > 20_000_000 && precision == Precision::F32 && tokens_per_second > 100.0);
    assert_eq!(get(&service.account.counters.models), 1);
    service.send(&sender(1), Lane::Query, [Item::Unload]);
    service.wait(2);
    assert_eq!(
        service.answers[&(1, 0)],
        Reply::Report(Report::Unloaded { models: 1, bytes })
    );
    assert_eq!(get(&service.account.counters.models), 0);
    // Both at once: measured once.
    service.send(&sender(2), Lane::Query, [Item::Calibrate { again: false }]);
    service.send(&sender(3), Lane::Query, [Item::Calibrate { again: false }]);
    service.wait(4);
    assert!(matches!(service.answers[&(2, 0)], Reply::Report(Report::Calibrated(_))));
    assert_eq!(service.answers[&(2, 0)], service.answers[&(3, 0)]);
}

#[test]
fn a_model_that_is_not_what_it_should_be_fails_each_item() {
    let Some(mut service) = Service::new() else { return };
    service.key.fingerprint = "another".to_owned();
    service.start();
    service.send(
        &sender(0),
        Lane::Bulk,
        (0..20).map(text).chain([Item::Warm, Item::Calibrate { again: false }]),
    );
    service.wait(22);
    for reply in service.answers.values() {
        assert!(
            matches!(reply, Reply::Failed(failure) if failure.kind == crate::serve::ipc::failure::Kind::Changed),
            "{reply:?}"
        );
    }
}

#[test]
fn the_look_ahead_is_bounded() {
    let Some(mut service) = Service::new() else { return };
    // The planner alone: nothing is run.
    let planner = service.scheduler.clone();
    service
        .threads
        .push(spawn("planner", move || plan_ahead(&planner)).expect("a thread"));
    service.send(&sender(0), Lane::Bulk, (0..2000).map(text));
    let begin = std::time::Instant::now();
    while service.scheduler.planned_tokens() < 1024 && begin.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Time enough to go beyond the bound, were there none.
    std::thread::sleep(Duration::from_millis(500));
    let planned = service.scheduler.planned_tokens();
    assert!(
        (1024..1100).contains(&planned),
        "{planned} tokens of two batches of 512"
    );
}
