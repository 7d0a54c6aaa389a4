//! Settings (`situ.*`): definitions and their values in this process.

use crate::model::Precision;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum, pg_sys};
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

static MODEL_DIR: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static DEFAULT_MODEL: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CPU_THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
static QUEUE_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
static MODEL_IDLE: GucSetting<i32> = GucSetting::<i32>::new(0);
static MODEL_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(0);
static REQUEST_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static TRAINING_CHECKPOINT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static TRAINING_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(1024 * 1024);
static MAX_TRAININGS: GucSetting<i32> = GucSetting::<i32>::new(2);
static DEFAULT_LLM: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static LLM_ENDPOINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static LLM_ENDPOINT_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static LLM_ENDPOINT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(120_000);
static LLM_ENDPOINT_RETRIES: GucSetting<i32> = GucSetting::<i32>::new(2);
static LLM_THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
static LLM_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(0);
static LLM_QUEUE_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(4 * 1024);
static BRIDGE_SPACE: GucSetting<i32> = GucSetting::<i32>::new(1024 * 1024);
static BATCH_TOKENS: GucSetting<i32> = GucSetting::<i32>::new(0);

static DEVICES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"auto"));
static DEVICE_FALLBACK: GucSetting<bool> = GucSetting::<bool>::new(true);
#[cfg(feature = "pg_test")]
static TEST_LOST_DEVICE: GucSetting<i32> = GucSetting::<i32>::new(-1);

/// The upper end of `situ.max_trainings`: places in shared memory.
pub const MOST_TRAININGS: usize = 64;

/// Values of `situ.cpu_precision`.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
enum CpuPrecision {
    #[name = c"auto"]
    Auto,
    #[name = c"f32"]
    F32,
    #[name = c"bf16"]
    Bf16,
    #[name = c"int8"]
    Int8,
}

static CPU_PRECISION: GucSetting<CpuPrecision> = GucSetting::<CpuPrecision>::new(CpuPrecision::Auto);

/// Defines the settings. `preload`: the library is loaded by the postmaster, which alone may define settings of its
/// own level.
pub fn define(preload: bool) {
    models();
    encoder();
    encoder_limits();
    training();
    llm();
    if preload {
        at_start();
    }
}

/// Which models functions use, and where their files lie.
fn models() {
    let string = GucRegistry::define_string_guc;
    string(
        c"situ.model_dir",
        c"Directory that holds the model directories.",
        c"Empty means the directory \"situ_models\" in the data directory; a relative path is relative to that.",
        &MODEL_DIR,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    string(
        c"situ.default_model",
        c"Model that functions use when none is named.",
        c"Empty means the only registered model.",
        &DEFAULT_MODEL,
        GucContext::Userset,
        GucFlags::default(),
    );
    string(
        c"situ.default_llm",
        c"LLM that functions use when none is named.",
        c"Empty means the only registered LLM.",
        &DEFAULT_LLM,
        GucContext::Userset,
        GucFlags::default(),
    );
}

/// The encoder service: its processor, its batches, its devices.
fn encoder() {
    let number = GucRegistry::define_int_guc;
    number(
        c"situ.cpu_threads",
        c"Threads of the encoder on the CPU.",
        c"0 means one for each processor.",
        &CPU_THREADS,
        0,
        1024,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"situ.cpu_precision",
        c"Numeric precision of the encoder on the CPU.",
        c"auto takes the fastest whose vectors had a cosine of at least 0.999 to those in f32 when the model was registered.",
        &CPU_PRECISION,
        GucContext::Sighup,
        GucFlags::default(),
    );
    number(
        c"situ.batch_tokens",
        c"Tokens that the encoder puts into a batch.",
        c"0 means about 80 ms of work at the measured speed. On a GPU a query waits for the running batch.",
        &BATCH_TOKENS,
        0,
        1 << 20,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"situ.device_fallback",
        c"Whether the processor takes over the requests of a device that is lost or does not start.",
        c"Off: they fail with an error.",
        &DEVICE_FALLBACK,
        GucContext::Sighup,
        GucFlags::default(),
    );
    #[cfg(feature = "pg_test")]
    number(
        c"situ.test_lost_device",
        c"Number of the device whose worker takes it for lost; 100 more: once it has work.",
        c"For tests of situ itself.",
        &TEST_LOST_DEVICE,
        -1,
        164,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// What the encoder keeps in memory, and how long a call waits for it.
fn encoder_limits() {
    let number = GucRegistry::define_int_guc;
    number(
        c"situ.model_idle",
        c"Time without a request after which the encoder unloads a model.",
        c"0 means never.",
        &MODEL_IDLE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    number(
        c"situ.model_memory",
        c"Memory of the models that the encoder keeps loaded at a time.",
        c"The model that is needed is always loaded; others make room for it. 0 means no limit.",
        &MODEL_MEMORY,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    number(
        c"situ.request_timeout",
        c"Longest wait for an answer of the encoder.",
        c"Counted from the last answer of the same call. 0 means no limit.",
        &REQUEST_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

/// Trainings, and what their bridges may take.
fn training() {
    let number = GucRegistry::define_int_guc;
    number(
        c"situ.training_checkpoint",
        c"Time between two checkpoints of a training.",
        c"A training that is resumed begins at the last one. 0 keeps every one that the trainer offers.",
        &TRAINING_CHECKPOINT,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    number(
        c"situ.training_memory",
        c"Memory of a training's passages and their vectors.",
        c"Of more passages, documents are drawn until it is full; the bridge's figures say how many of how many.",
        &TRAINING_MEMORY,
        1024,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    number(
        c"situ.max_trainings",
        c"Trainings that run at a time.",
        c"Each is a background worker of max_worker_processes; paused ones have none. 0 means that nobody may train.",
        &MAX_TRAININGS,
        0,
        MOST_TRAININGS as i32,
        GucContext::Sighup,
        GucFlags::default(),
    );
    number(
        c"situ.bridge_space",
        c"Most disk space that the bridges of one role may take.",
        c"A bridge counts 8 kB at least. Superusers are not counted. 0 means no limit.",
        &BRIDGE_SPACE,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
}

/// The LLM worker and the endpoint.
fn llm() {
    let string = GucRegistry::define_string_guc;
    let number = GucRegistry::define_int_guc;
    number(
        c"situ.llm_threads",
        c"Threads of the LLM worker.",
        c"0 means one for each processor.",
        &LLM_THREADS,
        0,
        1024,
        GucContext::Sighup,
        GucFlags::default(),
    );
    number(
        c"situ.llm_memory",
        c"Memory of the LLM worker for weights and the states of answers in progress.",
        c"Idle LLMs are unloaded to make room; further requests wait. 0 means no limit.",
        &LLM_MEMORY,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    string(
        c"situ.llm_endpoint",
        c"Address of an OpenAI-compatible endpoint, as http://127.0.0.1:8080/v1.",
        c"LLMs by the name endpoint:model are models of it. Empty means there is none.",
        &LLM_ENDPOINT,
        GucContext::Suset,
        GucFlags::default(),
    );
    string(
        c"situ.llm_endpoint_key_file",
        c"File whose first line is the endpoint's key, which is sent as a bearer token.",
        c"Relative to the data directory. Empty means the environment variable SITU_LLM_ENDPOINT_KEY of the server, if it is set.",
        &LLM_ENDPOINT_KEY_FILE,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    number(
        c"situ.llm_endpoint_timeout",
        c"Longest time of an answer of the endpoint, repetitions included.",
        c"A request that takes longer fails.",
        &LLM_ENDPOINT_TIMEOUT,
        1,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    number(
        c"situ.llm_endpoint_retries",
        c"How often a request is sent again where the endpoint cannot be reached or is busy.",
        c"0 means never.",
        &LLM_ENDPOINT_RETRIES,
        0,
        10,
        GucContext::Userset,
        GucFlags::default(),
    );
}

/// What the postmaster alone may define.
fn at_start() {
    let string = GucRegistry::define_string_guc;
    let number = GucRegistry::define_int_guc;
    string(
        c"situ.devices",
        c"Devices of the encoder, each with a worker of its own.",
        c"Names with commas between them: cpu, cuda:0. auto means all CUDA GPUs that are found, and the processor \
          where there are none.",
        &DEVICES,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"situ.queue_memory",
        c"Shared memory of the queue between backends and encoder.",
        c"Each call in progress takes 128 kB of it; more calls than fit wait.",
        &QUEUE_MEMORY,
        1024,
        1 << 20,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    number(
        c"situ.llm_queue_memory",
        c"Shared memory of the queue between backends and the LLM worker.",
        c"Each call in progress takes 128 kB of it; more calls than fit wait.",
        &LLM_QUEUE_MEMORY,
        1024,
        1 << 20,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
}

/// Reserves the prefix: unknown settings below it are reported. Called after every module has defined its own.
pub fn reserve() {
    // SAFETY: called in `_PG_init` with a constant string.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"situ".as_ptr()) }
}

fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    setting
        .get()
        .map(|value| value.to_string_lossy().into_owned())
        .filter(|value| !value.is_empty())
}

/// `situ.model_dir` as an absolute path.
pub fn model_dir() -> String {
    let directory = text(&MODEL_DIR).unwrap_or_else(|| "situ_models".to_owned());
    data_directory().join(directory).to_string_lossy().into_owned()
}

/// Where kernels that were compiled for the machine's GPUs are kept: `situ_kernels` in the data directory.
pub fn kernel_cache() -> PathBuf {
    data_directory().join("situ_kernels")
}

/// The server's data directory.
pub fn data_directory() -> PathBuf {
    // SAFETY: the server sets its data directory before any library is loaded, and does not change it.
    unsafe {
        match pg_sys::DataDir.is_null() {
            true => PathBuf::new(),
            false => CStr::from_ptr(pg_sys::DataDir).to_string_lossy().into_owned().into(),
        }
    }
}

/// `situ.default_model`, `None` where it is not set.
pub fn default_model() -> Option<String> {
    text(&DEFAULT_MODEL)
}

/// Time between two checkpoints of a training.
pub fn training_checkpoint() -> Duration {
    Duration::from_millis(TRAINING_CHECKPOINT.get().max(0) as u64)
}

/// Bytes of a training's passages and vectors.
pub fn training_memory() -> usize {
    TRAINING_MEMORY.get().max(0) as usize * 1024
}

/// Trainings that run at a time.
pub fn max_trainings() -> usize {
    usize::try_from(MAX_TRAININGS.get()).unwrap_or(0)
}

/// Bytes that a role's bridges may take, 0 for no limit.
pub fn bridge_space() -> i64 {
    i64::from(BRIDGE_SPACE.get().max(0)) * 1024
}

/// Threads of the encoder, 0 for the machine's.
pub fn cpu_threads() -> usize {
    CPU_THREADS.get().max(0) as usize
}

/// `situ.cpu_precision`, `None` for `auto`.
pub fn cpu_precision() -> Option<Precision> {
    match CPU_PRECISION.get() {
        CpuPrecision::Auto => None,
        CpuPrecision::F32 => Some(Precision::F32),
        CpuPrecision::Bf16 => Some(Precision::Bf16),
        CpuPrecision::Int8 => Some(Precision::Int8),
    }
}

/// `situ.devices` as it is written.
pub fn devices() -> String {
    text(&DEVICES).unwrap_or_else(|| "auto".to_owned())
}

/// Whether the processor steps in for lost devices.
pub fn device_fallback() -> bool {
    DEVICE_FALLBACK.get()
}

/// What is added to a device's number in `situ.test_lost_device` where it is lost only once it has work.
pub const LOST_WITH_WORK: usize = 100;

/// Whether a test wants the worker of this device to take it for lost.
pub fn test_lost_device(number: usize) -> bool {
    #[cfg(feature = "pg_test")]
    return usize::try_from(TEST_LOST_DEVICE.get()).is_ok_and(|lost| lost == number);
    #[cfg(not(feature = "pg_test"))]
    {
        let _ = number;
        false
    }
}

/// Bytes of the queue.
pub fn queue_memory() -> usize {
    QUEUE_MEMORY.get().max(0) as usize * 1024
}

/// Seconds, 0 for never.
pub fn model_idle() -> u64 {
    MODEL_IDLE.get().max(0) as u64
}

/// Bytes, 0 for no limit.
pub fn model_memory() -> usize {
    MODEL_MEMORY.get().max(0) as usize * 1024
}

/// Milliseconds, 0 for no limit.
pub fn request_timeout() -> i32 {
    REQUEST_TIMEOUT.get()
}

/// Tokens, 0 for what the measured speed suggests.
pub fn batch_tokens() -> usize {
    BATCH_TOKENS.get().max(0) as usize
}

/// `situ.default_llm`, `None` where it is not set.
pub fn default_llm() -> Option<String> {
    text(&DEFAULT_LLM)
}

/// Threads of the LLM worker, 0 for the machine's.
pub fn llm_threads() -> usize {
    LLM_THREADS.get().max(0) as usize
}

/// Bytes for weights and caches of LLMs, 0 for no limit.
pub fn llm_memory() -> usize {
    LLM_MEMORY.get().max(0) as usize * 1024
}

/// Bytes of the LLM's queue.
pub fn llm_queue_memory() -> usize {
    LLM_QUEUE_MEMORY.get().max(0) as usize * 1024
}

/// `situ.llm_endpoint`, `None` where it is not set.
pub fn llm_endpoint() -> Option<String> {
    text(&LLM_ENDPOINT)
}

/// `situ.llm_endpoint_key_file` as an absolute path, `None` where it is not set.
pub fn llm_endpoint_key_file() -> Option<PathBuf> {
    text(&LLM_ENDPOINT_KEY_FILE).map(|file| data_directory().join(file))
}

/// Longest time of an answer of the endpoint.
pub fn llm_endpoint_timeout() -> Duration {
    Duration::from_millis(u64::from(LLM_ENDPOINT_TIMEOUT.get().unsigned_abs()))
}

/// How often a request to the endpoint is sent again.
pub fn llm_endpoint_retries() -> u32 {
    LLM_ENDPOINT_RETRIES.get().unsigned_abs()
}
