//! A byte ring with one producer and one consumer, over memory that somebody else owns (shared memory of the server).
//!
//! Positions count bytes since the last reset and only grow; `tail - head` bytes are waiting. Only the producer stores
//! `tail`, only the consumer stores `head`; each publishes with Release what the other reads with Acquire, so the
//! bytes below `tail` are complete when they are seen. [`Ring::reset`] is for a moment when only one side exists
//! (`shared` has the rules). Messages of any length stream through: whoever writes more than fits goes on later.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// Positions of a ring, in shared memory beside its bytes. All-zero bytes are an empty ring.
#[derive(Default)]
#[repr(C, align(64))]
pub struct Positions {
    head: AtomicU64,
    /// Keeps the two positions, which different processors write, on different cache lines.
    _apart: [u64; 7],
    tail: AtomicU64,
}

/// One end of a ring.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    positions: &'a Positions,
    bytes: *mut u8,
    /// A power of two.
    capacity: usize,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Ring<'a> {
    /// A ring over `capacity` bytes, a power of two.
    ///
    /// # Safety
    /// `bytes` is valid for reads and writes of `capacity` bytes for `'a`, and at any time at most one process writes
    /// to the ring and at most one reads from it.
    pub unsafe fn new(positions: &'a Positions, bytes: *mut u8, capacity: usize) -> Ring<'a> {
        debug_assert!(capacity.is_power_of_two());
        Ring {
            positions,
            bytes,
            capacity,
            memory: PhantomData,
        }
    }

    /// Bytes waiting to be read.
    pub fn waiting(&self) -> usize {
        let head = self.positions.head.load(Ordering::Acquire);
        let tail = self.positions.tail.load(Ordering::Acquire);
        (tail.wrapping_sub(head) as usize).min(self.capacity)
    }

    /// Writes as much of `data` as fits and says how much that was.
    pub fn write(&self, data: &[u8]) -> usize {
        let tail = self.positions.tail.load(Ordering::Relaxed);
        let count = data.len().min(self.capacity - self.waiting());
        let at = tail as usize & (self.capacity - 1);
        let first = count.min(self.capacity - at);
        // SAFETY: both parts lie inside the ring's bytes, and in the part that the consumer does not read.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.bytes.add(at), first);
            std::ptr::copy_nonoverlapping(data.as_ptr().add(first), self.bytes, count - first);
        }
        self.positions
            .tail
            .store(tail.wrapping_add(count as u64), Ordering::Release);
        count
    }

    /// Appends at most `most` waiting bytes to `into` and says how many there were.
    pub fn read(&self, into: &mut Vec<u8>, most: usize) -> usize {
        let head = self.positions.head.load(Ordering::Relaxed);
        let count = most.min(self.waiting());
        let at = head as usize & (self.capacity - 1);
        let first = count.min(self.capacity - at);
        // SAFETY: both parts lie inside the ring's bytes, and the producer has completed them.
        unsafe {
            into.extend_from_slice(std::slice::from_raw_parts(self.bytes.add(at), first));
            into.extend_from_slice(std::slice::from_raw_parts(self.bytes, count - first));
        }
        self.positions
            .head
            .store(head.wrapping_add(count as u64), Ordering::Release);
        count
    }

    /// Empties the ring. Only where no other process uses it.
    pub fn reset(&self) {
        self.positions.head.store(0, Ordering::SeqCst);
        self.positions.tail.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(positions: &Positions, bytes: &mut [u8]) -> Ring<'static> {
        // SAFETY: the tests keep both alive and use one producer and one consumer.
        unsafe { std::mem::transmute(Ring::new(positions, bytes.as_mut_ptr(), bytes.len())) }
    }

    #[test]
    fn bytes_come_out_in_order_over_the_edge() {
        let positions = Positions::default();
        let mut memory = vec![0u8; 16];
        let ring = ring(&positions, &mut memory);
        let mut out = Vec::new();
        let mut sent = 0u8;
        for round in 0..50usize {
            let data: Vec<u8> = (0..(round % 19) as u8).map(|i| sent.wrapping_add(i)).collect();
            sent = sent.wrapping_add(ring.write(&data) as u8);
            ring.read(&mut out, round % 7);
        }
        while ring.read(&mut out, 5) > 0 {}
        assert!(out.len() > 100);
        assert!(out.iter().enumerate().all(|(i, &byte)| byte == i as u8));
    }

    #[test]
    fn a_full_ring_takes_nothing_more() {
        let positions = Positions::default();
        let mut memory = vec![0u8; 8];
        let ring = ring(&positions, &mut memory);
        assert_eq!(ring.write(&[1; 20]), 8);
        assert_eq!(ring.write(&[2; 1]), 0);
        let mut out = Vec::new();
        assert_eq!(ring.read(&mut out, 3), 3);
        assert_eq!(ring.write(&[2; 9]), 3);
        assert_eq!(ring.waiting(), 8);
        ring.reset();
        assert_eq!(ring.waiting(), 0);
    }

    #[test]
    fn two_threads_agree_on_every_byte() {
        const TOTAL: usize = 1 << 20;
        let positions: &'static Positions = Box::leak(Box::default());
        let memory: &'static mut [u8] = Box::leak(vec![0u8; 1024].into_boxed_slice());
        let address = memory.as_mut_ptr() as usize;
        // SAFETY: leaked memory, one producer thread, one consumer thread.
        let end = move || unsafe { Ring::new(positions, address as *mut u8, 1024) };
        let producer = std::thread::spawn(move || {
            let ring = end();
            let mut sent = 0usize;
            while sent < TOTAL {
                let data: Vec<u8> = (sent..TOTAL.min(sent + 777)).map(|i| (i % 251) as u8).collect();
                sent += ring.write(&data);
            }
        });
        let ring = end();
        let mut out = Vec::new();
        while out.len() < TOTAL {
            ring.read(&mut out, 500);
        }
        producer.join().expect("the producer ends");
        assert!(out.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8));
    }
}
