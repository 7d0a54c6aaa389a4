//! Functions of SQL that look at their call itself: where an argument lies, and what their expression keeps between calls.

use pgrx::pg_sys;

/// What a function of SQL keeps in its expression: made at the first call, gone with the statement.
///
/// # Safety
/// `call` is the server's, and every call of the function keeps the same type.
pub unsafe fn kept<'a, T: Default + 'static>(call: pg_sys::FunctionCallInfo) -> Option<&'a mut T> {
    // SAFETY: the server's contract: `flinfo` lives as long as the expression, and `fn_extra` is the function's own. The
    // value is dropped with the memory context.
    unsafe {
        let function = (*call).flinfo.as_mut()?;
        if function.fn_extra.is_null() {
            let made = pgrx::PgMemoryContexts::For(function.fn_mcxt).leak_and_drop_on_delete(T::default());
            function.fn_extra = made.cast();
        }
        function.fn_extra.cast::<T>().as_mut()
    }
}

/// NULL as a result.
///
/// # Safety
/// `call` is in progress.
pub unsafe fn null(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a call in progress.
    unsafe { (*call).isnull = true };
    pg_sys::Datum::null()
}

/// An argument, counted from 0; `None` for NULL.
///
/// # Safety
/// `call` is in progress.
pub unsafe fn argument(call: pg_sys::FunctionCallInfo, at: usize) -> Option<pg_sys::Datum> {
    // SAFETY: a call in progress; the function is declared with more arguments than `at`.
    unsafe {
        let arguments = (*call).args.as_slice((*call).nargs as usize);
        arguments
            .get(at)
            .filter(|argument| !argument.isnull)
            .map(|argument| argument.value)
    }
}

/// A function that the server calls with the version-1 convention: its symbol, and that of its record.
macro_rules! function {
    ($(#[$doc:meta])* $name:ident, $finfo:ident, $body:path) => {
        /// Tells the server that the function uses the version-1 calling convention.
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $finfo() -> *const pgrx::pg_sys::Pg_finfo_record {
            static RECORD: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &raw const RECORD
        }

        $(#[$doc])*
        ///
        /// # Safety
        /// Called by the server with arguments of the types that the function is declared with.
        #[pgrx::pg_guard]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(call: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            // SAFETY: the caller's promise.
            unsafe { $body(call) }
        }
    };
}
pub(super) use function;
