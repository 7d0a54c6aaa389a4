//! The options of `CREATE INDEX ... USING situ ... WITH (...)`.

use crate::bridge::situate::Situate;
use pgrx::pg_sys;
use std::ffi::CStr;
use std::sync::OnceLock;

/// What `WITH (...)` gave, as the server stores it: a varlena whose string options are offsets.
#[repr(C)]
struct StoredOptions {
    length_word: i32,
    model: i32,
    situate: i32,
    chunk_tokens: i32,
    window_tokens: i32,
    lists: i32,
    situate_weight: f64,
    bridge: i32,
}

/// The options of one index, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexSettings {
    /// Name of the model in `situ.models`; none means the default model.
    pub model: Option<String>,
    /// None means: `header` with a title column, `none` without.
    pub situate: Option<Situate>,
    pub chunk_tokens: u32,
    /// 0 = the model's limit.
    pub window_tokens: u32,
    /// The situated part's share, `rho` of `c = (1 - rho) c_b + rho c_s`.
    /// Below 0: the mode's own.
    pub situate_weight: f32,
    /// Name of a bridge in `situ.bridges` that changes the passages.
    pub bridge: Option<String>,
    /// 0 = chosen from the number of rows.
    pub lists: u32,
}

const DEFAULT_CHUNK_TOKENS: i32 = 128;
const DEFAULT_WEIGHT: f64 = -1.0;

impl Default for IndexSettings {
    fn default() -> Self {
        IndexSettings {
            model: None,
            situate: None,
            chunk_tokens: DEFAULT_CHUNK_TOKENS as u32,
            window_tokens: 0,
            situate_weight: DEFAULT_WEIGHT as f32,
            lists: 0,
            bridge: None,
        }
    }
}

struct Kind(pg_sys::relopt_kind::Type);

/// Registers the options once a process; later calls give the same kind.
fn kind() -> pg_sys::relopt_kind::Type {
    static KIND: OnceLock<Kind> = OnceLock::new();
    // SAFETY: runs in the backend's own thread; the strings are static and the server copies names.
    KIND.get_or_init(|| unsafe {
        let kind = pg_sys::add_reloption_kind();
        add_strings(kind);
        add_situate(kind);
        add_numbers(kind);
        Kind(kind)
    })
    .0
}

/// What is locked to change an option.
const LOCK: pg_sys::LOCKMODE = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;

/// # Safety
/// Runs in the backend's own thread, once for each kind.
unsafe fn add_strings(kind: pg_sys::relopt_kind::Type) {
    let all = [
        (c"model", c"name of the model in situ.models that encodes the text"),
        (
            c"bridge",
            c"name of the bridge in situ.bridges that changes the passages",
        ),
    ];
    for (name, about) in all {
        // SAFETY: the caller's promise; the strings are static.
        unsafe {
            pg_sys::add_string_reloption(kind, name.as_ptr(), about.as_ptr(), std::ptr::null(), None, LOCK);
        }
    }
}

/// # Safety
/// Runs in the backend's own thread, once for each kind.
unsafe fn add_situate(kind: pg_sys::relopt_kind::Type) {
    let names = [c"auto", c"none", c"header", c"late", c"residual", c"bridge"];
    let named = (0..).zip(names).map(|(symbol_val, name)| pg_sys::relopt_enum_elt_def {
        string_val: name.as_ptr(),
        symbol_val,
    });
    let end = pg_sys::relopt_enum_elt_def {
        string_val: std::ptr::null(),
        symbol_val: 0,
    };
    // The server keeps the address.
    let members: &'static mut [_] = Box::leak(named.chain([end]).collect());
    // SAFETY: the caller's promise; strings and members are static.
    unsafe {
        pg_sys::add_enum_reloption(
            kind,
            c"situate".as_ptr(),
            c"how a chunk is encoded in its place".as_ptr(),
            members.as_mut_ptr(),
            0,
            c"Valid values are \"auto\", \"none\", \"header\", \"late\", \"residual\" and \"bridge\".".as_ptr(),
            LOCK,
        );
    }
}

/// # Safety
/// Runs in the backend's own thread, once for each kind.
unsafe fn add_numbers(kind: pg_sys::relopt_kind::Type) {
    let chunk = c"the most tokens in one chunk";
    let window = c"tokens of the document read around a chunk (0 = the model's limit)";
    let lists = c"number of inverted lists (0 = from the number of rows)";
    let all = [
        (c"chunk_tokens", chunk, DEFAULT_CHUNK_TOKENS, 8, 32_768),
        (c"window_tokens", window, 0, 0, 32_768),
        (c"lists", lists, 0, 0, 1_000_000),
    ];
    // SAFETY: the caller's promise; the strings are static.
    unsafe {
        for (name, about, default, least, most) in all {
            pg_sys::add_int_reloption(kind, name.as_ptr(), about.as_ptr(), default, least, most, LOCK);
        }
        pg_sys::add_real_reloption(
            kind,
            c"situate_weight".as_ptr(),
            c"share of the situated vector in the mix of situate = 'late' or 'residual' (-1 = the mode's own)".as_ptr(),
            DEFAULT_WEIGHT,
            -1.0,
            1.0,
            LOCK,
        );
    }
}

/// Access-method callback: parses and checks the options.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amoptions(options: pg_sys::Datum, validate: bool) -> *mut pg_sys::bytea {
    #[allow(clippy::needless_update)] // PostgreSQL 18 has one field more.
    let element = |name: &'static CStr, kind: pg_sys::relopt_type::Type, offset: usize| pg_sys::relopt_parse_elt {
        optname: name.as_ptr(),
        opttype: kind,
        offset: offset as i32,
        ..Default::default()
    };
    use pg_sys::relopt_type::{RELOPT_TYPE_ENUM, RELOPT_TYPE_INT, RELOPT_TYPE_REAL, RELOPT_TYPE_STRING};
    use std::mem::offset_of;
    let elements = [
        element(c"model", RELOPT_TYPE_STRING, offset_of!(StoredOptions, model)),
        element(c"situate", RELOPT_TYPE_ENUM, offset_of!(StoredOptions, situate)),
        element(
            c"chunk_tokens",
            RELOPT_TYPE_INT,
            offset_of!(StoredOptions, chunk_tokens),
        ),
        element(
            c"window_tokens",
            RELOPT_TYPE_INT,
            offset_of!(StoredOptions, window_tokens),
        ),
        element(c"lists", RELOPT_TYPE_INT, offset_of!(StoredOptions, lists)),
        element(
            c"situate_weight",
            RELOPT_TYPE_REAL,
            offset_of!(StoredOptions, situate_weight),
        ),
        element(c"bridge", RELOPT_TYPE_STRING, offset_of!(StoredOptions, bridge)),
    ];
    // SAFETY: the elements describe StoredOptions, whose first field is the varlena length.
    unsafe {
        pg_sys::build_reloptions(
            options,
            validate,
            kind(),
            std::mem::size_of::<StoredOptions>(),
            elements.as_ptr(),
            elements.len() as i32,
        )
        .cast()
    }
}

/// The options of an open index.
///
/// # Safety
/// `index` is an open index relation of this access method.
pub unsafe fn settings(index: pg_sys::Relation) -> IndexSettings {
    // SAFETY: rd_options, where set, was made by `amoptions`; string options are offsets from its start, 0 = unset.
    unsafe {
        let stored = (*index).rd_options.cast::<StoredOptions>();
        if stored.is_null() {
            return IndexSettings::default();
        }
        let options = &*stored;
        let text = |offset: i32| {
            let text = (offset != 0).then(|| {
                let name = stored.cast::<std::ffi::c_char>().add(offset as usize);
                CStr::from_ptr(name).to_string_lossy().into_owned()
            });
            text.filter(|text| !text.is_empty())
        };
        IndexSettings {
            model: text(options.model),
            bridge: text(options.bridge),
            situate: match options.situate {
                1 => Some(Situate::None),
                2 => Some(Situate::Header),
                3 => Some(Situate::Late),
                4 => Some(Situate::Residual),
                5 => Some(Situate::Bridge),
                _ => None,
            },
            chunk_tokens: options.chunk_tokens as u32,
            window_tokens: options.window_tokens as u32,
            situate_weight: options.situate_weight as f32,
            lists: options.lists as u32,
        }
    }
}

/// Registers the options at load, so that an index of this access method can be opened before any other call.
pub fn define() {
    kind();
}
