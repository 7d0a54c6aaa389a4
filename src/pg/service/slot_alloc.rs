//! Claiming slots: which device, which of its slots, and the owner written into it; and giving them back.
//!
//! A slot that is claimed stands in this process's list of held slots until it is released, so that the end of the process or
//! of a transaction finds all of them.

use super::ServiceError;
use super::shared::{self, ABANDONED, ACTIVE, CLAIMED, FREE, Shared};
use crate::pg::settings;
use crate::serve::ipc::wire::Lane;
use parking_lot::Mutex;
use pgrx::pg_sys;
use std::sync::atomic::Ordering;

/// The devices that may be asked, the one with the least to do first: bytes that senders wait for, by the measured
/// speed; one that is not measured yet counts as the fastest. One that was lost and has answered nothing since comes after
/// those, and one without a worker last.
fn choices(shared: &'static Shared) -> Result<Vec<usize>, ServiceError> {
    let devices = shared.devices();
    if let [only] = devices
        && !only.is_lost()
    {
        return Ok(vec![0]);
    }
    let mut usable: Vec<usize> = (0..shared.listed())
        .filter(|device| !devices[*device].is_lost())
        .collect();
    if usable.is_empty() && settings::device_fallback() {
        usable.extend((shared.listed()..devices.len()).filter(|device| !devices[*device].is_lost()));
    }
    if usable.is_empty() {
        return Err(ServiceError::DeviceLost {
            device: devices[0].name.get(),
            last_error: devices[0].last_error.get(),
        });
    }
    let speed = |device: &usize| devices[*device].account.counters.speed.load(Ordering::Relaxed);
    let most = usable.iter().map(speed).max().unwrap_or(0).max(1);
    usable.sort_by_cached_key(|device| {
        let slots = shared.slots_of(*device).map(|number| shared.slot(number));
        let taken = slots.filter(|slot| slot.state.load(Ordering::Relaxed) == ACTIVE);
        let (senders, bytes) = taken.fold((0, 0), |(senders, bytes), slot| {
            (senders + 1, bytes + slot.outstanding.load(Ordering::Relaxed))
        });
        let speed = Some(speed(device)).filter(|speed| *speed > 0).unwrap_or(most);
        (
            !devices[*device].worker_runs(),
            devices[*device].is_on_probation(),
            bytes.saturating_mul(1000) / speed,
            senders,
        )
    });
    Ok(usable)
}

/// Slots of the LLM's queue that one session and one role may have of `count`. A call keeps its slot as long as the cursor over it is open,
/// so without a share one session could keep all others out.
fn shares(count: usize) -> (usize, usize) {
    ((count / 4).max(2), count - (count / 4).max(1))
}

/// Whether the caller's role has its share of the LLM's queue; an error where its session has: waiting for itself would
/// have no end.
fn has_its_share(shared: &'static Shared) -> Result<bool, ServiceError> {
    if !Shared::llm().is_some_and(|llm| std::ptr::eq(llm, shared)) {
        return Ok(false);
    }
    // SAFETY: set in every backend.
    let (pid, user) = unsafe { (pg_sys::MyProcPid, pg_sys::GetUserId().to_u32()) };
    let (of_session, of_role) = shares(shared.slots());
    let (mut own, mut role) = (0, 0);
    let slots = (0..shared.slots()).map(|number| shared.slot(number));
    for slot in slots.filter(|slot| slot.state.load(Ordering::SeqCst) == ACTIVE) {
        own += usize::from(slot.pid.load(Ordering::Relaxed) == pid);
        role += usize::from(slot.user.load(Ordering::Relaxed) == user);
    }
    match own >= of_session {
        true => Err(ServiceError::TooMany { most: of_session }),
        false => Ok(role >= of_role),
    }
}

/// Claims a slot of the device that has the least to do and a slot free.
pub fn allocate_any(shared: &'static Shared, lane: Lane) -> Result<Option<usize>, ServiceError> {
    if has_its_share(shared)? {
        return Ok(None);
    }
    let choices = choices(shared)?;
    Ok(choices.into_iter().find_map(|device| allocate(shared, device, lane)))
}

/// Slots of `count` that bulk senders may have: some are kept for the query lane, so that they can never keep queries out.
fn bulk_share(count: usize) -> usize {
    count - (count / 8).max(2).min(count / 2)
}

/// Claims one of the first half of a device's bulk slots.
pub fn allocate_beside(shared: &'static Shared, device: usize) -> Option<usize> {
    let slots = shared.slots_of(device);
    let half = bulk_share(slots.len()) / 2;
    let own = slots.into_iter().take(half).find(|number| take(shared, *number))?;
    Some(occupy(shared, own, Lane::Bulk))
}

/// Claims a free slot of a device and of the lane's share.
pub fn allocate(shared: &'static Shared, device: usize, lane: Lane) -> Option<usize> {
    let mut slots = shared.slots_of(device);
    let share = bulk_share(slots.len());
    let own = match lane {
        Lane::Query => slots.rev().find(|number| take(shared, *number)),
        Lane::Bulk => slots.by_ref().take(share).find(|number| take(shared, *number)),
    }?;
    Some(occupy(shared, own, lane))
}

/// Writes the owner into a slot that was taken, and returns its number.
fn occupy(shared: &'static Shared, own: usize, lane: Lane) -> usize {
    let slot = shared.slot(own);
    // SAFETY: set in every backend; `MyLatch` lies in the server's process table.
    let (pid, latch, user, database) = unsafe {
        let user = pg_sys::GetUserId().to_u32();
        (pg_sys::MyProcPid, pg_sys::MyLatch, user, pg_sys::MyDatabaseId.to_u32())
    };
    let generation = shared::next_generation();
    slot.generation.store(generation, Ordering::SeqCst);
    slot.pid.store(pid, Ordering::Relaxed);
    slot.user.store(user, Ordering::Relaxed);
    slot.database.store(database, Ordering::Relaxed);
    slot.lane.store(u32::from(lane == Lane::Bulk), Ordering::Relaxed);
    slot.since.store(shared::now(), Ordering::Relaxed);
    slot.items.store(0, Ordering::Relaxed);
    slot.done.store(0, Ordering::Relaxed);
    slot.outstanding.store(0, Ordering::Relaxed);
    slot.progress.tokens.store(0, Ordering::Relaxed);
    slot.progress.running.store(0, Ordering::Relaxed);
    slot.latch.store(latch, Ordering::SeqCst);
    let epoch = shared.device_of(own).epoch.load(Ordering::SeqCst);
    if slot.epoch.swap(epoch, Ordering::SeqCst) != epoch {
        shared.requests(own).reset();
        shared.replies(own).reset();
    }
    hold(shared, own);
    slot.state.store(ACTIVE, Ordering::SeqCst);
    own
}

fn take(shared: &Shared, number: usize) -> bool {
    let state = &shared.slot(number).state;
    state.load(Ordering::Relaxed) == FREE
        && state
            .compare_exchange(FREE, CLAIMED, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
}

/// The slots that this process holds: queue and number.
static HELD: Mutex<Vec<(&'static Shared, usize)>> = Mutex::new(Vec::new());

/// Notes that this process holds a slot.
fn hold(shared: &'static Shared, number: usize) {
    HELD.lock().push((shared, number));
}

/// Gives a slot back. `clean`: everything was answered and read.
pub(super) fn release(shared: &'static Shared, number: usize, clean: bool) {
    let mut held = HELD.lock();
    let same = |(queue, other): &(&'static Shared, usize)| std::ptr::eq(*queue, shared) && *other == number;
    let Some(place) = held.iter().position(same) else {
        return;
    };
    held.swap_remove(place);
    drop(held);
    let slot = shared.slot(number);
    if clean {
        slot.state.store(FREE, Ordering::SeqCst);
        shared.slot_freed();
    } else {
        slot.state.store(ABANDONED, Ordering::SeqCst);
        let device = shared.device_of(number);
        device.wake_worker();
        if !device.worker_runs() {
            shared::wake(&shared.launcher_latch);
        }
    }
}

/// Gives every slot back that this process holds.
pub(super) fn release_all() {
    loop {
        let last = HELD.lock().last().copied();
        match last {
            Some((shared, number)) => release(shared, number, false),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_all_slots() {
        for count in 4..100 {
            let (session, role) = shares(count);
            assert!(session >= 1 && session <= role && role < count, "{count}");
        }
    }
}
