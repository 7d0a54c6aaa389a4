//! Starts the worker of a job.

use crate::pg::fail::fail_with_hint;
use crate::pg::service::launcher;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// What a worker is told when it is started: database, role and job, in the bytes that the server keeps for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub database: pg_sys::Oid,
    pub role: pg_sys::Oid,
    pub job: i64,
}

impl Order {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.database.to_u32().to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.role.to_u32().to_ne_bytes());
        bytes[8..].copy_from_slice(&self.job.to_ne_bytes());
        bytes
    }

    fn read(bytes: [u8; 16]) -> Order {
        let [a, b, c, d, e, f, g, h, job @ ..] = bytes;
        Order {
            database: pg_sys::Oid::from_u32(u32::from_ne_bytes([a, b, c, d])),
            role: pg_sys::Oid::from_u32(u32::from_ne_bytes([e, f, g, h])),
            job: i64::from_ne_bytes(job),
        }
    }

    /// This process's own.
    pub fn mine() -> Order {
        let mut bytes = [0u8; 16];
        // SAFETY: the server sets the entry of a background worker before it calls its main function.
        let extra = unsafe { (*pg_sys::MyBgworkerEntry).bgw_extra };
        bytes.iter_mut().zip(extra).for_each(|(to, from)| *to = from as u8);
        Order::read(bytes)
    }
}

/// Fails where the server starts no worker for a role: PostgreSQL 16 does for those alone that may log in.
#[cfg_attr(not(feature = "pg16"), allow(unused_variables))]
pub fn check_role(role: pg_sys::Oid) {
    #[cfg(feature = "pg16")]
    {
        let statement = "SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE oid OPERATOR(pg_catalog.=) $1";
        let may = Spi::get_one_with_args::<bool>(statement, &[role.into()]);
        // A role that is gone has nothing to train for; the server says so.
        if may == Ok(Some(false)) {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
                "PostgreSQL 16 starts no training worker for a role that may not log in".into(),
                "Train as a role with LOGIN, or with PostgreSQL 17 or later.",
            )
        }
    }
}

/// Starts a worker for a job of `role` in this database, and gives its process once it runs.
pub fn start(job: i64, role: pg_sys::Oid) -> i32 {
    check_role(role);
    let mut worker = launcher::worker(c"situ trainer", c"situ_trainer_main", pg_sys::BGW_NEVER_RESTART);
    worker.bgw_flags |= pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION as i32;
    // SAFETY: numbers of this process.
    let (database, process) = unsafe { (pg_sys::MyDatabaseId, pg_sys::MyProcPid) };
    worker.bgw_notify_pid = process;
    let order = Order { database, role, job };
    let extra = worker.bgw_extra.iter_mut().zip(order.bytes());
    extra.for_each(|(to, from)| *to = from as std::ffi::c_char);
    let mut handle = std::ptr::null_mut();
    let mut pid = 0;
    // SAFETY: the server copies the structure; the handle lives in this statement's memory.
    let status = unsafe {
        if !pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
                "no background worker is free to train".into(),
                "Raise max_worker_processes, or wait; then SELECT situ.resume_training(id) from situ.training.",
            )
        }
        pg_sys::WaitForBackgroundWorkerStartup(handle, &mut pid)
    };
    match status {
        pg_sys::BgwHandleStatus::BGWH_STARTED => pid,
        // It has begun and ended already.
        _ => 0,
    }
}

/// Whether a worker's process is there. A new one is not in the server's process table yet, so the system is asked.
pub fn is_alive(pid: i32) -> bool {
    // SAFETY: signal 0 only looks; all processes of the server have one user.
    pid > 0 && unsafe { libc::kill(pid, 0) } == 0
}

/// Cancels what a worker does.
pub fn interrupt(pid: i32) {
    if is_alive(pid) {
        // SAFETY: a signal to a process of this server.
        unsafe { libc::kill(pid, libc::SIGINT) };
    }
}

/// Gives the processor to others first.
pub fn step_back() {
    // SAFETY: changes this process's own priority.
    unsafe { libc::nice(10) };
}
