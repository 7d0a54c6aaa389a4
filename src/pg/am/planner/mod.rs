//! What the planner is told of `body <=> question`: which index it is evaluated by, and what it costs.
//!
//! Where exactly one index over text is on a column, the operator means that index's distance, whatever the plan: with its
//! model, its chunks, its titles. So the operator's support function puts the index into the question while the statement
//! is planned (EXPLAIN shows it), and outside a scan of the index the operator does as the index would
//! (`pg/search/document.rs`):
//!
//! * An expression that the index may order by stays the operator. Its question becomes a `situ.query` with the index.
//! * Any other becomes a call of `situ_internal.document_distance`, which gets the row's title too, and costs what encoding costs.
//!
//! A path that has to order by evaluating the operator encodes every document, while a scan of the index has the distances
//! at hand. The operator's own cost cannot say both, so the hook on paths (`paths.rs`) adds the encoding to those that do it.

mod nodes;
mod origin;
mod paths;

use super::build::ambuild;
use super::kind::{KeyKind, column_kind, read_text};
use super::returned_distances::key_column;
use crate::pg::catalog::owner::{INTERNAL, PUBLIC};
use crate::pg::search::query::Query;
use nodes::{length, nth, stripped};
use origin::{entry, origin};
pub use paths::define;
use pgrx::datum::IntoDatum;
use pgrx::prelude::*;
use pgrx::{is_a, pg_sys};
use std::ffi::CStr;

/// Puts an index into a question: `situ_internal.text_by_index`.
#[pg_extern(sql = false)]
fn text_by_index(query: &str, index: pg_sys::Oid) -> Query {
    by_index(Query::from_text(query.to_owned()), index)
}

/// Puts an index into a question: `situ_internal.query_by_index`.
#[pg_extern(sql = false)]
fn query_by_index(question: Query, index: pg_sys::Oid) -> Query {
    by_index(question, index)
}

fn by_index(question: Query, index: pg_sys::Oid) -> Query {
    Query {
        index: Some(index.to_u32()),
        ..question
    }
}

/// Tells the server that [`situ_distance_support`] uses the version-1 calling convention.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_finfo_situ_distance_support() -> *const pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &raw const RECORD
}

/// The planner support function of the operators' functions.
///
/// # Safety
/// Called by the server with a request node.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn situ_distance_support(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the server's contract: one argument, a node.
    unsafe {
        let request = (*call).args.as_slice(1)[0].value.cast_mut_ptr::<pg_sys::Node>();
        if (*request).type_ != pg_sys::NodeTag::T_SupportRequestSimplify {
            return pg_sys::Datum::null();
        }
        let request = &*request.cast::<pg_sys::SupportRequestSimplify>();
        if request.root.is_null() || length((*request.fcall).args) != 2 {
            return pg_sys::Datum::null();
        }
        let simplified = Call::of(request.root, request.fcall).and_then(|call| call.resolved());
        simplified.map_or(pg_sys::Datum::null(), pg_sys::Datum::from)
    }
}

/// A call of an operator's function in a statement that is being planned.
struct Call {
    root: *mut pg_sys::PlannerInfo,
    /// The support function, which all functions of the operators share, and no others have.
    support: pg_sys::Oid,
    /// The type `situ.query`.
    query_type: pg_sys::Oid,
    collation: pg_sys::Oid,
    body: *mut pg_sys::Node,
    question: *mut pg_sys::Node,
}

/// The one index that a call is evaluated by.
struct Chosen {
    index: pg_sys::Oid,
    /// The operator with a `situ.query` of its operator class.
    operator: pg_sys::Oid,
    key_type: pg_sys::Oid,
    /// The column of its title, where it has one and it is a column.
    title: Option<i16>,
    titled: bool,
}

fn function(name: &CStr, types: &[pg_sys::Oid]) -> pg_sys::Oid {
    // SAFETY: a catalog look-up by names that the server copies; no such function gives an invalid OID.
    unsafe {
        let mut names = std::ptr::null_mut();
        for part in [INTERNAL, name] {
            names = pg_sys::lappend(names, pg_sys::makeString(pg_sys::pstrdup(part.as_ptr())).cast());
        }
        pg_sys::LookupFuncName(names, types.len() as i32, types.as_ptr(), true)
    }
}

impl Call {
    unsafe fn of(root: *mut pg_sys::PlannerInfo, call: *mut pg_sys::FuncExpr) -> Option<Call> {
        // SAFETY: nodes of the planner; the call has two arguments.
        unsafe {
            let schema = pg_sys::get_namespace_oid(PUBLIC.as_ptr(), true);
            let query_type = pg_sys::GetSysCacheOid(
                pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
                pg_sys::Anum_pg_type_oid as i16,
                pg_sys::Datum::from(c"query".as_ptr()),
                pg_sys::Datum::from(schema),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
            );
            (query_type != pg_sys::InvalidOid).then_some(Call {
                root,
                support: pg_sys::get_func_support((*call).funcid),
                query_type,
                collation: (*call).inputcollid,
                body: nth((*call).args, 0),
                question: nth((*call).args, 1),
            })
        }
    }

    /// What the call is by its index; `None` to leave it as it is.
    unsafe fn resolved(&self) -> Option<*mut pg_sys::Node> {
        // SAFETY: nodes of the planner.
        unsafe {
            let chosen = self.index()?;
            let question = self.question_by(chosen.index)?;
            if let Some(call) = self.as_function(&chosen, question) {
                return Some(call);
            }
            let operator = pg_sys::make_opclause(
                chosen.operator,
                pg_sys::FLOAT8OID,
                false,
                self.body.cast(),
                question.cast(),
                pg_sys::InvalidOid,
                self.collation,
            );
            pg_sys::set_opfuncid(operator.cast());
            Some(operator.cast())
        }
    }

    /// The question with the index in it; `None` where it has one, or is NULL.
    unsafe fn question_by(&self, index: pg_sys::Oid) -> Option<*mut pg_sys::Node> {
        // SAFETY: nodes of the planner; a constant that is not null has the type that it says.
        unsafe {
            let is_query = pg_sys::exprType(self.question) == self.query_type;
            let name = if is_query { c"query_by_index" } else { c"text_by_index" };
            let kind = if is_query { self.query_type } else { pg_sys::TEXTOID };
            if is_a(self.question, pg_sys::NodeTag::T_Const) {
                let constant = &*self.question.cast::<pg_sys::Const>();
                if constant.constisnull {
                    return None;
                }
                let query = match is_query {
                    true => Query::from_argument(constant.constvalue),
                    false => Query::from_text(read_text(constant.constvalue)),
                };
                if query.index.is_some() {
                    return None;
                }
                let value = by_index(query, index).into_datum()?;
                let made = pg_sys::makeConst(self.query_type, -1, pg_sys::InvalidOid, -1, value, false, false);
                return Some(made.cast());
            }
            let wrap = function(name, &[kind, pg_sys::REGCLASSOID]);
            let wrapped = is_a(self.question, pg_sys::NodeTag::T_FuncExpr) && {
                let called = (*self.question.cast::<pg_sys::FuncExpr>()).funcid;
                called == wrap || called == function(c"text_by_index", &[pg_sys::TEXTOID, pg_sys::REGCLASSOID])
            };
            if wrap == pg_sys::InvalidOid || wrapped {
                return None;
            }
            let oid = pg_sys::Datum::from(index);
            let index = pg_sys::makeConst(pg_sys::REGCLASSOID, -1, pg_sys::InvalidOid, 4, oid, false, true);
            let mut arguments = pg_sys::lappend(std::ptr::null_mut(), self.question.cast());
            arguments = pg_sys::lappend(arguments, index.cast());
            let form = pg_sys::CoercionForm::COERCE_EXPLICIT_CALL;
            let none = pg_sys::InvalidOid;
            Some(pg_sys::makeFuncExpr(wrap, self.query_type, arguments, none, self.collation, form).cast())
        }
    }

    /// `situ_internal.document_distance(body, title, question)`, where no index can order by the call and the title is at hand.
    unsafe fn as_function(&self, chosen: &Chosen, question: *mut pg_sys::Node) -> Option<*mut pg_sys::Node> {
        // SAFETY: nodes of the planner.
        unsafe {
            let body = stripped(self.body);
            let query = &*(*self.root).parse;
            if !is_a(body, pg_sys::NodeTag::T_Var)
                || chosen.key_type != pg_sys::TEXTOID
                || !query.groupingSets.is_null()
                || is_grouped_by(query, body)
                || query.commandType == pg_sys::CmdType::CMD_INSERT
                || self.is_ordered_by(body)
            {
                return None;
            }
            let body = &*body.cast::<pg_sys::Var>();
            if !origin(self.root, body)?.own {
                return None;
            }
            let title = match chosen.title {
                Some(column) => self.sibling(body, column)?,
                None if chosen.titled => return None,
                None => pg_sys::makeNullConst(pg_sys::TEXTOID, -1, pg_sys::DEFAULT_COLLATION_OID).cast(),
            };
            let called = function(
                c"document_distance",
                &[pg_sys::TEXTOID, pg_sys::TEXTOID, self.query_type],
            );
            if called == pg_sys::InvalidOid {
                return None;
            }
            let mut arguments = std::ptr::null_mut();
            for argument in [self.body, title, question] {
                arguments = pg_sys::lappend(arguments, argument.cast());
            }
            let form = pg_sys::CoercionForm::COERCE_EXPLICIT_CALL;
            let none = pg_sys::InvalidOid;
            Some(pg_sys::makeFuncExpr(called, pg_sys::FLOAT8OID, arguments, none, self.collation, form).cast())
        }
    }

    /// Whether the query sorts by a distance of that body to a question that is one value for all rows.
    unsafe fn is_ordered_by(&self, body: *mut pg_sys::Node) -> bool {
        // SAFETY: nodes of the planner; target lists hold target entries.
        unsafe {
            let targets = (*(*self.root).parse).targetList;
            (0..length(targets)).any(|at| {
                let target = &*nth(targets, at).cast::<pg_sys::TargetEntry>();
                let key = target.expr.cast::<pg_sys::Node>();
                let (called, arguments) = if is_a(key, pg_sys::NodeTag::T_OpExpr) {
                    let operation = &*key.cast::<pg_sys::OpExpr>();
                    (pg_sys::get_opcode(operation.opno), operation.args)
                } else if is_a(key, pg_sys::NodeTag::T_FuncExpr) {
                    let call = &*key.cast::<pg_sys::FuncExpr>();
                    (call.funcid, call.args)
                } else {
                    return false;
                };
                target.ressortgroupref != 0
                    && length(arguments) == 2
                    && self.is_distance(called)
                    && pg_sys::equal(stripped(nth(arguments, 0)).cast(), body.cast())
                    && !pg_sys::contain_var_clause(nth(arguments, 1))
            })
        }
    }

    unsafe fn is_distance(&self, called: pg_sys::Oid) -> bool {
        // SAFETY: a catalog look-up; gives an invalid OID for a function without one.
        let support = unsafe { pg_sys::get_func_support(called) };
        support != pg_sys::InvalidOid && support == self.support
    }

    /// Another column of the row of `body`, as text.
    unsafe fn sibling(&self, body: &pg_sys::Var, column: i16) -> Option<*mut pg_sys::Node> {
        // SAFETY: nodes of the planner; the column is one of the table's.
        unsafe {
            let origin = origin(self.root, body)?;
            let (mut kind, mut modifier, mut collation) = (pg_sys::InvalidOid, -1, pg_sys::InvalidOid);
            pg_sys::get_atttypetypmodcoll(
                origin.table,
                column,
                &raw mut kind,
                &raw mut modifier,
                &raw mut collation,
            );
            let sibling = pg_sys::copyObjectImpl(std::ptr::from_ref(body).cast()).cast::<pg_sys::Var>();
            (*sibling).varattno = column;
            (*sibling).vartype = kind;
            (*sibling).vartypmod = modifier;
            (*sibling).varcollid = collation;
            (*sibling).varattnosyn = if (*sibling).varnosyn == 0 { 0 } else { column };
            match kind {
                pg_sys::TEXTOID => Some(sibling.cast()),
                pg_sys::VARCHAROID => {
                    let form = pg_sys::CoercionForm::COERCE_IMPLICIT_CAST;
                    Some(pg_sys::makeRelabelType(sibling.cast(), pg_sys::TEXTOID, -1, collation, form).cast())
                }
                _ => None,
            }
        }
    }

    /// The only valid index over text on what the body is.
    unsafe fn index(&self) -> Option<Chosen> {
        // SAFETY: nodes of the planner; the table is locked by the statement, its indexes are locked here, as the planner
        // does.
        unsafe {
            let body = stripped(self.body);
            let (table, column, relation) = if is_a(body, pg_sys::NodeTag::T_Var) {
                let origin = origin(self.root, &*body.cast::<pg_sys::Var>())?;
                (origin.table, Some(origin.column), 0)
            } else {
                let mut member = 0;
                if !pg_sys::bms_get_singleton_member(pg_sys::pull_varnos(self.root, body), &raw mut member) {
                    return None;
                }
                let entry = entry((*(*self.root).parse).rtable, member)?;
                if (*entry).rtekind != pg_sys::RTEKind::RTE_RELATION {
                    return None;
                }
                ((*entry).relid, None, member)
            };
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let table = pg_sys::try_relation_open(table, lock);
            if table.is_null() {
                return None;
            }
            let indexes = pg_sys::RelationGetIndexList(table);
            let (mut chosen, mut several) = (None, false);
            for at in 0..length(indexes) {
                let index = pg_sys::index_open((*(*indexes).elements.add(at as usize)).oid_value, lock);
                if is_over(index, column, body, relation) {
                    several |= chosen.is_some();
                    chosen = self.chosen(index);
                }
                pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
            }
            pg_sys::relation_close(table, pg_sys::NoLock as pg_sys::LOCKMODE);
            chosen.filter(|_| !several)
        }
    }

    unsafe fn chosen(&self, index: pg_sys::Relation) -> Option<Chosen> {
        // SAFETY: an open index of this access method.
        unsafe {
            let key_type = *(*index).rd_opcintype;
            let strategy = super::scan_state::QUERY_STRATEGY as i16;
            let operator = pg_sys::get_opfamily_member(*(*index).rd_opfamily, key_type, self.query_type, strategy);
            let titled = (*(*index).rd_index).indnkeyatts > 1;
            (operator != pg_sys::InvalidOid).then_some(Chosen {
                index: (*index).rd_id,
                operator,
                key_type,
                title: if titled { key_column(index, 1) } else { None },
                titled,
            })
        }
    }
}

/// Whether a query groups by that column: its siblings are then not at hand. A column that is not grouped by stands inside an
/// aggregate or a filter, or the key of its row is grouped by; so do its siblings then.
unsafe fn is_grouped_by(query: &pg_sys::Query, body: *mut pg_sys::Node) -> bool {
    // SAFETY: nodes of the planner; the lists hold sort-group clauses and target entries.
    unsafe {
        (0..length(query.groupClause)).any(|at| {
            let group = &*nth(query.groupClause, at).cast::<pg_sys::SortGroupClause>();
            (0..length(query.targetList)).any(|at| {
                let target = &*nth(query.targetList, at).cast::<pg_sys::TargetEntry>();
                target.ressortgroupref == group.tleSortGroupRef
                    && pg_sys::equal(stripped(target.expr.cast()).cast(), body.cast())
            })
        })
    }
}

/// Whether an index is a valid one over text on that column, or on that expression of relation `number`.
unsafe fn is_over(index: pg_sys::Relation, column: Option<i16>, body: *mut pg_sys::Node, number: i32) -> bool {
    // SAFETY: an open index; expressions of an index are about relation 1.
    unsafe {
        let ours = (*index).rd_indam.as_ref().and_then(|methods| methods.ambuild);
        if ours.map(|function| function as usize) != Some(ambuild as *const () as usize)
            || !(*(*index).rd_index).indisvalid
            || column_kind(index, 1) != KeyKind::Text
        {
            return false;
        }
        match (column, key_column(index, 0)) {
            (Some(column), Some(key)) => column == key,
            (None, None) => {
                let expressions = pg_sys::RelationGetIndexExpressions(index);
                if expressions.is_null() {
                    return false;
                }
                let expression = nth(expressions, 0);
                pg_sys::ChangeVarNodes(expression, 1, number, 0);
                pg_sys::equal(stripped(expression).cast(), body.cast())
            }
            _ => false,
        }
    }
}
