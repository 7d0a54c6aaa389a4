//! Where a column of a query comes from: through sub-selects and WITH queries to the table that stores it.

use super::nodes::{length, nth, stripped};
use pgrx::{is_a, pg_sys};
use std::ffi::CStr;

/// A column of a table, through the sub-selects and WITH queries that pass it on.
pub(super) struct Origin {
    pub table: pg_sys::Oid,
    pub column: i16,
    /// The table stands in this very query level.
    pub own: bool,
}

/// The variable that an expression is, but for casts.
unsafe fn variable<'a>(expression: *mut pg_sys::Node) -> Option<&'a pg_sys::Var> {
    // SAFETY: a node of the planner, which lives as long as the statement is planned.
    unsafe {
        let node = stripped(expression);
        is_a(node, pg_sys::NodeTag::T_Var).then(|| &*node.cast::<pg_sys::Var>())
    }
}

/// Where a column comes from.
pub(super) unsafe fn origin(root: *mut pg_sys::PlannerInfo, var: &pg_sys::Var) -> Option<Origin> {
    // SAFETY: nodes of the planner: what a variable names is in its level's range table.
    unsafe {
        let mut query = (*root).parse;
        let (mut number, mut column, mut own) = (var.varno, var.varattno, true);
        if var.varlevelsup != 0 || is_old_or_new(var) {
            return None;
        }
        loop {
            let entry = entry((*query).rtable, number)?;
            let inner = match (*entry).rtekind {
                pg_sys::RTEKind::RTE_RELATION => {
                    let kind = (*entry).relkind as u8;
                    let stored = [
                        pg_sys::RELKIND_RELATION,
                        pg_sys::RELKIND_MATVIEW,
                        pg_sys::RELKIND_PARTITIONED_TABLE,
                    ];
                    return (stored.contains(&kind) && column > 0).then_some(Origin {
                        table: (*entry).relid,
                        column,
                        own,
                    });
                }
                #[cfg(feature = "pg18")]
                pg_sys::RTEKind::RTE_GROUP => {
                    let at = i32::from(column) - 1;
                    if !(0..length((*entry).groupexprs)).contains(&at) {
                        return None;
                    }
                    let grouped = variable(nth((*entry).groupexprs, at))?;
                    (number, column, own) = (grouped.varno, grouped.varattno, false);
                    continue;
                }
                pg_sys::RTEKind::RTE_SUBQUERY => (*entry).subquery,
                pg_sys::RTEKind::RTE_CTE if (*entry).ctelevelsup == 0 && !(*entry).self_reference => {
                    with_query(query, (*entry).ctename)?
                }
                _ => return None,
            };
            if inner.is_null() || !(*inner).setOperations.is_null() || column < 1 {
                return None;
            }
            let targets = (*inner).targetList;
            let at = i32::from(column) - 1;
            if at >= length(targets) {
                return None;
            }
            let passed = variable((*nth(targets, at).cast::<pg_sys::TargetEntry>()).expr.cast())?;
            if passed.varlevelsup != 0 {
                return None;
            }
            (query, number, column, own) = (inner, passed.varno, passed.varattno, false);
        }
    }
}

/// Whether a variable is of the row before or after a change, in RETURNING.
#[cfg(feature = "pg18")]
fn is_old_or_new(var: &pg_sys::Var) -> bool {
    var.varreturningtype != pg_sys::VarReturningType::VAR_RETURNING_DEFAULT
}

#[cfg(not(feature = "pg18"))]
fn is_old_or_new(_var: &pg_sys::Var) -> bool {
    false
}

pub(super) unsafe fn entry(table: *mut pg_sys::List, number: i32) -> Option<*mut pg_sys::RangeTblEntry> {
    // SAFETY: a list of range table entries, counted from 1.
    unsafe {
        (1..=length(table))
            .contains(&number)
            .then(|| nth(table, number - 1).cast())
    }
}

/// The query of that name in the WITH of a level; `None` for one that is recursive.
unsafe fn with_query(query: *mut pg_sys::Query, name: *const std::ffi::c_char) -> Option<*mut pg_sys::Query> {
    // SAFETY: a list of common table expressions, whose names are strings.
    unsafe {
        let all = (*query).cteList;
        (0..length(all))
            .map(|at| &*nth(all, at).cast::<pg_sys::CommonTableExpr>())
            .find(|with| CStr::from_ptr(with.ctename) == CStr::from_ptr(name))
            .filter(|with| !with.cterecursive && is_a(with.ctequery, pg_sys::NodeTag::T_Query))
            .map(|with| with.ctequery.cast())
    }
}
