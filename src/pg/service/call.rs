//! One call and the model that it asks: its slots, and which item goes to which.
//!
//! A call begins with one slot. A bulk call that has enough in flight takes another one on each further device, as far as
//! these have slots to spare, and deals its items: each goes where it is expected to be done first, by the bytes
//! in flight there and the measured speed. Where that device has no room the call waits, so that a slow device never gets
//! more than it does in the time that a fast one has for what is in flight there. Replies come in any order.

use super::channel::{self, Channel};
use super::{Item, Lane, ModelRef, Reply, ServiceError};
use crate::serve::ipc::wire::{BadMessage, ModelKey, Request, encode_request};
use std::time::Duration;

/// Bytes in flight on every slot of a call from which on another device is worth a slot: some thousand tokens.
const WORTH: usize = 8 << 10;
/// Items until another slot is looked for again where there was none.
const AGAIN: u64 = 64;

/// A call in progress.
pub(super) struct Call {
    /// Never empty.
    channels: Vec<Channel>,
    key: ModelKey,
    /// The model's name in the caller's database.
    model: String,
    lane: Lane,
    sent: u64,
    /// The number of sent items at which a further device is looked for.
    next_look: u64,
    /// Bytes of the last item.
    last: usize,
    /// The channel that is asked first for an answer.
    next_poll: usize,
}

impl Call {
    /// Waits for a slot of the device that has the least to do (cancellable) and holds it until drop.
    pub(super) fn open(model: &ModelRef, lane: Lane) -> Result<Call, ServiceError> {
        Ok(Call::on(model, lane, Channel::open(lane, &model.name)?))
    }

    /// A call on a slot that is there.
    pub(super) fn on(model: &ModelRef, lane: Lane, channel: Channel) -> Call {
        Call {
            channels: vec![channel],
            key: model.key(),
            model: model.name.clone(),
            lane,
            sent: 0,
            next_look: 0,
            last: 0,
            next_poll: 0,
        }
    }

    /// Sends an item without waiting.
    pub(super) fn send(&mut self, number: u64, item: Item) -> Result<(), ServiceError> {
        let bytes = item.bytes();
        self.widen();
        let full = |at: usize| !self.channels[at].has_room();
        let Some(at) = (0..self.channels.len()).min_by_key(|at| (full(*at), self.expected(*at, bytes))) else {
            return Err(ServiceError::Protocol("a call without a slot".to_owned()));
        };
        let request = Request {
            generation: self.channels[at].generation(),
            number,
            lane: self.lane,
            model: self.key.clone(),
            item,
        };
        let message = encode_request(&request).map_err(|error| match error {
            BadMessage::Malformed(_) => ServiceError::TooLarge { bytes },
            memory => memory.into(),
        })?;
        self.channels[at].send(number, message);
        self.sent += 1;
        self.last = bytes;
        Ok(())
    }

    /// Takes a slot on another device where all that the call has are busy.
    fn widen(&mut self) {
        let busy = |channel: &Channel| channel.outstanding() >= WORTH;
        if self.lane != Lane::Bulk || self.sent < self.next_look || !self.channels.iter().all(busy) {
            return;
        }
        let used: Vec<usize> = self.channels.iter().map(Channel::device_number).collect();
        match Channel::open_beside(&self.model, &used) {
            Some(channel) => self.channels.push(channel),
            None => self.next_look = self.sent + AGAIN,
        }
    }

    /// When a further item of that many bytes would be done on a channel: the least is the best. A device that is not
    /// measured yet counts as the fastest; one without a worker comes last.
    fn expected(&self, at: usize, bytes: usize) -> (bool, u64) {
        let channel = &self.channels[at];
        let speeds = self.channels.iter().filter_map(Channel::speed);
        let speed = channel.speed().or(speeds.max()).unwrap_or(1);
        let bytes = (channel.outstanding() + bytes) as u64;
        (!channel.is_served(), bytes.saturating_mul(1000) / speed)
    }

    /// Whether another item, of the size of the last one, may be sent.
    pub(super) fn has_room(&self) -> bool {
        let best = (0..self.channels.len()).min_by_key(|at| self.expected(*at, self.last));
        best.is_some_and(|at| self.channels[at].has_room())
    }

    /// Items that wait for an answer.
    pub(super) fn in_flight(&self) -> usize {
        self.channels.iter().map(Channel::in_flight).sum()
    }

    /// The next answer that is there; an item that failed is an error of the whole call.
    pub(super) fn poll(&mut self) -> Result<Option<(u64, Reply)>, ServiceError> {
        let count = self.channels.len();
        for turn in 0..count {
            let at = (self.next_poll + turn) % count;
            match self.channels[at].poll()? {
                Some((_, Reply::Failed(failure))) => return Err(failure.into()),
                Some(answer) => {
                    self.next_poll = at + 1;
                    return Ok(Some(answer));
                }
                None => {}
            }
        }
        Ok(None)
    }

    /// Waits until something may have happened. Raises the server's error when the statement is cancelled.
    pub(super) fn wait(&mut self) -> Result<(), ServiceError> {
        let mut idle: Option<Duration> = None;
        for channel in &mut self.channels {
            let since = channel.since_answer();
            idle = Some(idle.map_or(since, |idle| idle.min(since)));
            if channel.in_flight() > 0 {
                channel.check_worker()?;
            }
        }
        channel::wait(idle.unwrap_or_default())
    }
}
