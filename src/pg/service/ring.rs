//! A byte ring with one producer and one consumer.
