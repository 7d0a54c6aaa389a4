//! The queues, as a backend with a fault would use them.

use crate::pg::service::channel::{Channel, wait};
use crate::pg::service::shared::Shared;
use crate::pg::service::{Kind, ServiceError};
use crate::serve::ipc::wire::{Lane, WHOLE_CALL};
use crate::serve::llm::wire as llm;
use pgrx::prelude::*;

/// Bytes in the place of a request: no header, and a length beyond every limit.
fn garbage() -> [Vec<u8>; 2] {
    let mut short = 12u32.to_le_bytes().to_vec();
    short.extend([0xff; 12]);
    [short, u32::MAX.to_le_bytes().to_vec()]
}

#[pg_extern(sql = false)]
fn test_a_request_that_the_encoder_cannot_read_is_answered() {
    Spi::run("SET LOCAL situ.request_timeout = '30s'").expect("set");
    for message in garbage() {
        let queue = Shared::get().expect("a queue");
        let mut channel = Channel::open_in(queue, Lane::Query, "none").expect("a slot");
        channel.send(0, message);
        let error = loop {
            match channel.poll() {
                Ok(None) => wait(channel.since_answer()).expect("an answer in time"),
                Ok(Some(reply)) => panic!("{reply:?}"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&error, ServiceError::Failed(failure) if failure.kind == Kind::Internal),
            "{error:?}"
        );
    }
}

#[pg_extern(sql = false)]
fn test_a_request_that_the_llm_worker_cannot_read_is_answered() {
    Spi::run("SET LOCAL situ.request_timeout = '30s'").expect("set");
    for message in garbage() {
        let queue = Shared::llm().expect("a queue");
        let mut channel = Channel::open_in(queue, Lane::Query, "none").expect("a slot");
        channel.send(0, message);
        let message = loop {
            match channel.poll_message().expect("the worker runs") {
                None => wait(channel.since_answer()).expect("an answer in time"),
                Some(message) => break message,
            }
        };
        let (number, reply) = llm::decode_reply(&message).expect("a reply");
        assert_eq!(number, WHOLE_CALL);
        assert!(matches!(reply, llm::Reply::Failed(_)), "{reply:?}");
    }
}
