//! A stop hook for work that passes through many hands and waits for nothing: reading files, tokenising. It belongs to a
//! thread while that works for somebody; whoever works asks it between two pieces.

use super::ModelError;
use std::cell::RefCell;
use std::rc::Rc;

type Hook = Rc<dyn Fn() -> bool>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Puts the hook of before back, also where a panic unwinds.
struct Restore(Option<Hook>);

impl Drop for Restore {
    fn drop(&mut self) {
        let before = self.0.take();
        HOOK.with_borrow_mut(|hook| *hook = before);
    }
}

/// Runs `body`; what asks on this thread meanwhile is told to stop where `stop` says so.
pub fn until<T>(stop: impl Fn() -> bool + 'static, body: impl FnOnce() -> T) -> T {
    let before = HOOK.with_borrow_mut(|hook| hook.replace(Rc::new(stop)));
    let _restore = Restore(before);
    body()
}

/// Fails with [`ModelError::Stopped`] where the thread is to stop what it does.
pub fn check() -> Result<(), ModelError> {
    let hook = HOOK.with_borrow(Clone::clone);
    match hook.is_some_and(|stop| stop()) {
        true => Err(ModelError::Stopped),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_holds_for_its_body_alone() {
        assert!(check().is_ok());
        until(
            || true,
            || {
                assert!(matches!(check(), Err(ModelError::Stopped)));
                until(|| false, || assert!(check().is_ok()));
                assert!(check().is_err());
            },
        );
        let panicked = std::panic::catch_unwind(|| until(|| true, || panic!("on purpose")));
        assert!(panicked.is_err() && check().is_ok());
    }
}
