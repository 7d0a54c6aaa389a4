//! Nodes and lists of the planner.

use pgrx::{is_a, pg_sys};

/// A node without the casts that change nothing around it.
///
/// # Safety
/// `node` is live.
pub(super) unsafe fn stripped(mut node: *mut pg_sys::Node) -> *mut pg_sys::Node {
    // SAFETY: a live node.
    unsafe {
        while is_a(node, pg_sys::NodeTag::T_RelabelType) {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        node
    }
}

/// Entries of a list.
///
/// # Safety
/// `list` is a list, or null for an empty one.
pub(super) unsafe fn length(list: *mut pg_sys::List) -> i32 {
    // SAFETY: a list, or null for an empty one.
    unsafe { list.as_ref() }.map_or(0, |list| list.length)
}

/// An entry of a list of pointers, from 0.
///
/// # Safety
/// `list` is a list of pointers that is longer than `at`.
pub(super) unsafe fn nth(list: *mut pg_sys::List, at: i32) -> *mut pg_sys::Node {
    // SAFETY: the caller knows the length of this list of pointers.
    unsafe { (*(*list).elements.add(at as usize)).ptr_value.cast() }
}
