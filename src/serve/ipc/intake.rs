//! Requests as they come out of a slot's ring, and the end of a stream that does not parse.
//!
//! Where a message is no request nothing sensible can follow on the stream, and the number of its item is not known: the
//! worker answers the whole call with an error ([`WHOLE_CALL`](crate::serve::ipc::wire::WHOLE_CALL)) and reads nothing more of that owner, who
//! gives the slot up when the error comes.

use crate::serve::ipc::ring::Ring;
use crate::serve::ipc::wire::{Assembler, BadMessage};

/// What [`Intake::next`] found.
pub enum Taken<R> {
    /// No whole message is there.
    Nothing,
    Request(R),
    /// The stream of this owner ends here; said once.
    Broken(BadMessage),
}

/// The requests of one slot.
#[derive(Default)]
pub struct Intake {
    assembler: Assembler,
    /// The owner whose stream did not parse.
    broken: Option<u64>,
}

impl Intake {
    /// The next request of `owner` (the slot's generation), of at most `most` bytes. Sets `moved` when bytes were taken
    /// from the ring.
    pub fn next<R>(
        &mut self,
        ring: &Ring<'_>,
        owner: u64,
        most: usize,
        decode: fn(&[u8]) -> Result<R, BadMessage>,
        moved: &mut bool,
    ) -> Taken<R> {
        if self.broken == Some(owner) {
            return Taken::Nothing;
        }
        self.broken = None;
        let request = match self.assembler.take_up_to(ring, most, moved) {
            Ok(None) => return Taken::Nothing,
            Ok(Some(message)) => decode(&message),
            Err(error) => Err(error),
        };
        match request {
            Ok(request) => Taken::Request(request),
            Err(error) => {
                self.assembler.clear();
                self.broken = Some(owner);
                Taken::Broken(error)
            }
        }
    }

    /// Forgets what was read: the slot has no owner any more.
    pub fn clear(&mut self) {
        *self = Intake::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::ipc::ring::Positions;

    const MOST: usize = 1 << 10;

    fn decode(message: &[u8]) -> Result<Vec<u8>, BadMessage> {
        match message.first() {
            Some(b'!') => Err(BadMessage::Malformed("no request".to_owned())),
            _ => Ok(message.to_vec()),
        }
    }

    fn send(ring: &Ring<'_>, message: &[u8]) {
        ring.write(&(message.len() as u32).to_le_bytes());
        ring.write(message);
    }

    #[test]
    fn a_stream_that_does_not_parse_ends_for_its_owner_alone() {
        let positions = Positions::default();
        let mut memory = [0u8; 256];
        // SAFETY: both outlive the ring; one end writes and one reads.
        let ring = unsafe { Ring::new(&positions, memory.as_mut_ptr(), 256) };
        let mut intake = Intake::default();
        let mut next = |owner| intake.next(&ring, owner, MOST, decode, &mut false);
        send(&ring, b"one");
        assert!(matches!(next(7), Taken::Request(found) if found == b"one"));
        send(&ring, b"!");
        send(&ring, b"two");
        assert!(matches!(next(7), Taken::Broken(_)));
        assert!(matches!(next(7), Taken::Nothing));
        // The owner has gone, the slot was emptied, another one came.
        ring.reset();
        send(&ring, b"three");
        assert!(matches!(next(8), Taken::Request(found) if found == b"three"));
        ring.write(&(MOST as u32 + 1).to_le_bytes());
        assert!(matches!(next(8), Taken::Broken(_)), "longer than a request may be");
    }
}
