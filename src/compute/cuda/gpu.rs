//! One gpu: its context, memory, streams, events and graphs, with the driver's errors sorted into kinds.
//!
//! Every call makes the GPU's primary context current in the calling thread first, so any thread may call. Values of this
//! file keep their GPU alive and give back what they hold when they are dropped; a failure to give back is ignored,
//! because it only happens when the GPU is gone.

use super::super::ComputeError;
use super::library;
use cudarc::driver::{result, sys};
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

/// What can be known of a GPU without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    pub ordinal: u32,
    pub name: String,
    /// Bytes of device memory.
    pub memory: u64,
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
}

/// An open GPU.
pub struct Gpu {
    pub info: GpuInfo,
    /// Bytes of shared memory that a block may ask for.
    pub shared_memory: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: the driver's handles may be used from any thread once the context is current there (`Gpu::enter`).
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver synchronises its own state.
unsafe impl Sync for Gpu {}

/// An error of the driver as ours. `bytes` is what an allocation asked for.
pub(super) fn sorted(call: &'static str, error: result::DriverError, bytes: usize) -> ComputeError {
    use sys::CUresult::*;
    let mut name: *const std::ffi::c_char = std::ptr::null();
    // SAFETY: the driver answers with a string of its own that lives as long as the library, or leaves null.
    let name = unsafe {
        let _ = sys::cuGetErrorName(error.0, &mut name);
        if name.is_null() {
            format!("error {}", error.0 as u32)
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    };
    match error.0 {
        CUDA_ERROR_OUT_OF_MEMORY => ComputeError::DeviceMemory { bytes },
        // The context cannot be used again after any of these; some mean a broken kernel, some a broken GPU.
        CUDA_ERROR_DEINITIALIZED
        | CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_NO_DEVICE
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_SYSTEM_NOT_READY
        | CUDA_ERROR_MPS_CONNECTION_FAILED
        | CUDA_ERROR_UNKNOWN => ComputeError::DeviceLost(format!("{call}: {name}")),
        _ => ComputeError::Device(format!("{call}: {name}")),
    }
}

/// The result of a raw driver call.
pub(super) fn check(call: &'static str, status: sys::CUresult) -> Result<(), ComputeError> {
    status.result().map_err(|error| sorted(call, error, 0))
}

/// The GPUs of this machine; none where CUDA is missing or no GPU answers. Starts CUDA in this process.
pub fn gpus() -> Vec<GpuInfo> {
    if !library::has_driver() || result::init().is_err() {
        return Vec::new();
    }
    let count = result::device::get_count().unwrap_or(0);
    (0..count)
        .filter_map(|ordinal| describe(ordinal).ok())
        .map(|(info, _)| info)
        .collect()
}

fn describe(ordinal: i32) -> Result<(GpuInfo, sys::CUdevice), ComputeError> {
    use sys::CUdevice_attribute_enum::*;
    let failed = |error| sorted("cuDeviceGet", error, 0);
    let device = result::device::get(ordinal).map_err(failed)?;
    // SAFETY: the device was just given by the driver.
    unsafe {
        let attribute = |which| result::device::get_attribute(device, which).map_err(failed);
        let info = GpuInfo {
            ordinal: ordinal as u32,
            name: result::device::get_name(device).map_err(failed)?,
            memory: result::device::total_mem(device).map_err(failed)? as u64,
            capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
            ),
        };
        Ok((info, device))
    }
}

impl Gpu {
    /// Opens the GPU of that number. Fails where CUDA is missing, no such GPU is there, or it is too old (compute
    /// capability 8.0 brought what the kernels need).
    pub fn open(ordinal: u32) -> Result<Arc<Gpu>, ComputeError> {
        library::require_all()?;
        result::init().map_err(|error| sorted("cuInit", error, 0))?;
        let count = result::device::get_count().map_err(|error| sorted("cuDeviceGetCount", error, 0))?;
        if ordinal >= count as u32 {
            return Err(ComputeError::Device(format!(
                "there is no GPU {ordinal}: {count} found"
            )));
        }
        let (info, device) = describe(ordinal as i32)?;
        if info.capability < (8, 0) {
            let (major, minor) = info.capability;
            let what = format!("{} has compute capability {major}.{minor}, 8.0 is needed", info.name);
            return Err(ComputeError::Device(what));
        }
        let limit = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device was just given by the driver; the context is released in `drop`.
        let (shared_memory, context) = unsafe {
            (
                result::device::get_attribute(device, limit)
                    .map_err(|error| sorted("cuDeviceGetAttribute", error, 0))?,
                result::primary_ctx::retain(device).map_err(|error| sorted("cuDevicePrimaryCtxRetain", error, 0))?,
            )
        };
        let gpu = Gpu {
            info,
            shared_memory: shared_memory.max(0) as usize,
            device,
            context,
        };
        gpu.enter()?;
        Ok(Arc::new(gpu))
    }

    /// Makes the GPU's context current in this thread.
    pub(super) fn enter(&self) -> Result<(), ComputeError> {
        // SAFETY: the context is retained for the life of `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|error| sorted("cuCtxSetCurrent", error, 0))
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(usize, usize), ComputeError> {
        self.enter()?;
        result::mem_get_info().map_err(|error| sorted("cuMemGetInfo", error, 0))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: retained in `open`, released once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Elements whose every bit pattern is a value, in the same layout on both sides.
pub trait Plain: Copy + Default + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for f32 {}
impl Plain for half::bf16 {}
impl Plain for [u32; 4] {}

/// Device memory of `length` elements, not initialised.
pub struct Memory<T: Plain> {
    gpu: Arc<Gpu>,
    address: sys::CUdeviceptr,
    length: usize,
    kind: PhantomData<T>,
}

impl<T: Plain> Memory<T> {
    /// Allocates; [`ComputeError::DeviceMemory`] where the GPU has not that much left.
    pub fn new(gpu: &Arc<Gpu>, length: usize) -> Result<Memory<T>, ComputeError> {
        gpu.enter()?;
        let bytes = length.max(1).saturating_mul(size_of::<T>());
        // SAFETY: the memory is owned by the value that is returned, and freed once.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|error| sorted("cuMemAlloc", error, bytes))?;
        Ok(Memory {
            gpu: gpu.clone(),
            address,
            length,
            kind: PhantomData,
        })
    }

    /// Allocates and copies; ends when the copy is done.
    pub fn from_slice(stream: &Stream, elements: &[T]) -> Result<Memory<T>, ComputeError> {
        let memory = Memory::new(&stream.gpu, elements.len())?;
        memory.write(stream, elements)?;
        stream.wait()?;
        Ok(memory)
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }

    pub(super) fn address(&self) -> sys::CUdeviceptr {
        self.address
    }

    /// Starts to copy elements to the front. `elements` must stay as they are until the stream has been waited for, unless
    /// the memory is pageable: then they are copied before this returns.
    pub(super) fn write(&self, stream: &Stream, elements: &[T]) -> Result<(), ComputeError> {
        if elements.len() > self.length {
            return Err(ComputeError::Shape(format!(
                "{} numbers into device memory of {}",
                elements.len(),
                self.length
            )));
        }
        if elements.is_empty() {
            return Ok(());
        }
        self.gpu.enter()?;
        // SAFETY: the range fits (just checked) and `T` is plain.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                self.address,
                elements.as_ptr().cast(),
                size_of_val(elements),
                stream.handle,
            )
        };
        check("cuMemcpyHtoDAsync", status)
    }

    /// Starts to copy elements from the front into pinned memory.
    pub(super) fn read_into(&self, stream: &Stream, to: &mut Pinned<T>, count: usize) -> Result<(), ComputeError> {
        if count > self.length || count > to.length {
            return Err(ComputeError::Shape(format!(
                "{count} numbers from device memory of {}",
                self.length
            )));
        }
        if count == 0 {
            return Ok(());
        }
        self.gpu.enter()?;
        // SAFETY: both ranges fit (just checked); pinned memory may be written while the host goes on, and its owner reads
        // it after waiting for the stream.
        let status =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.memory.cast(), self.address, count * size_of::<T>(), stream.handle) };
        check("cuMemcpyDtoHAsync", status)
    }

    /// All elements; waits for the stream.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>, ComputeError> {
        let mut pinned = Pinned::new(&self.gpu, self.length)?;
        self.read_into(stream, &mut pinned, self.length)?;
        stream.wait()?;
        Ok(pinned.as_slice().to_vec())
    }
}

impl<T: Plain> Drop for Memory<T> {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: allocated in `new`, freed once. The driver waits for the work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Host memory that the GPU copies from and to by itself.
pub struct Pinned<T: Plain> {
    gpu: Arc<Gpu>,
    memory: *mut T,
    length: usize,
}

// SAFETY: the memory is owned like a `Vec`'s.
unsafe impl<T: Plain> Send for Pinned<T> {}

impl<T: Plain> Pinned<T> {
    /// Memory for `length` elements, set to zero.
    pub fn new(gpu: &Arc<Gpu>, length: usize) -> Result<Pinned<T>, ComputeError> {
        gpu.enter()?;
        let bytes = length.max(1).saturating_mul(size_of::<T>());
        // SAFETY: the memory is owned by the value that is returned; it is written before it is ever read.
        let memory: *mut T = unsafe { result::malloc_host(bytes, 0) }
            .map_err(|error| match sorted("cuMemHostAlloc", error, bytes) {
                ComputeError::DeviceMemory { bytes } => ComputeError::Memory { bytes },
                other => other,
            })?
            .cast();
        // SAFETY: `bytes` bytes were just allocated, and zero is a value of every plain number.
        unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned {
            gpu: gpu.clone(),
            memory,
            length,
        })
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: initialised memory of `length` elements.
        unsafe { std::slice::from_raw_parts(self.memory, self.length) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.length) }
    }
}

impl<T: Plain> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: allocated in `new`, freed once.
            let _ = unsafe { result::free_host(self.memory.cast::<c_void>()) };
        }
    }
}

/// A queue of work on the GPU.
pub struct Stream {
    pub(super) gpu: Arc<Gpu>,
    pub(super) handle: sys::CUstream,
}

// SAFETY: a stream may be used from any thread; the driver synchronises.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Stream, ComputeError> {
        gpu.enter()?;
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| sorted("cuStreamCreate", error, 0))?;
        Ok(Stream {
            gpu: gpu.clone(),
            handle,
        })
    }

    /// Waits until all work so far is done.
    pub fn wait(&self) -> Result<(), ComputeError> {
        self.gpu.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.handle) }.map_err(|error| sorted("cuStreamSynchronize", error, 0))
    }

    /// Records what `work` puts on this stream instead of running it.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), ComputeError>) -> Result<Graph, ComputeError> {
        self.gpu.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as `self`; a capture that was begun is ended below in every case.
        unsafe { result::stream::begin_capture(self.handle, mode) }
            .map_err(|error| sorted("cuStreamBeginCapture", error, 0))?;
        let done = work();
        // SAFETY: as above.
        let graph = unsafe { result::stream::end_capture(self.handle) };
        done?;
        let graph = graph.map_err(|error| sorted("cuStreamEndCapture", error, 0))?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was just made, and is destroyed once.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, flags);
            let _ = result::graph::destroy(graph);
            executable.map_err(|error| sorted("cuGraphInstantiate", error, 0))?
        };
        Ok(Graph {
            gpu: self.gpu.clone(),
            executable,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { result::stream::destroy(self.handle) };
        }
    }
}

/// Work that was recorded, with the addresses it was recorded with.
pub struct Graph {
    gpu: Arc<Gpu>,
    executable: sys::CUgraphExec,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Graph {}

impl Graph {
    /// Runs the work on a stream. The memory that it was recorded with is still allocated.
    pub fn launch(&self, stream: &Stream) -> Result<(), ComputeError> {
        self.gpu.enter()?;
        // SAFETY: graph and stream live as long as the borrowed values.
        unsafe { result::graph::launch(self.executable, stream.handle) }
            .map_err(|error| sorted("cuGraphLaunch", error, 0))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: instantiated in `capture`, destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

/// A point in a stream, with its time.
pub struct Event {
    gpu: Arc<Gpu>,
    handle: sys::CUevent,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}

impl Event {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Event, ComputeError> {
        gpu.enter()?;
        let handle = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(|error| sorted("cuEventCreate", error, 0))?;
        Ok(Event {
            gpu: gpu.clone(),
            handle,
        })
    }

    /// Marks the end of the stream's work so far.
    pub fn record(&self, stream: &Stream) -> Result<(), ComputeError> {
        self.gpu.enter()?;
        // SAFETY: event and stream live as long as the borrowed values.
        unsafe { result::event::record(self.handle, stream.handle) }.map_err(|error| sorted("cuEventRecord", error, 0))
    }

    /// Seconds on the GPU between two recorded events that have passed.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64, ComputeError> {
        self.gpu.enter()?;
        // SAFETY: both events live.
        unsafe { result::event::elapsed(earlier.handle, self.handle) }
            .map(|milliseconds| f64::from(milliseconds) / 1e3)
            .map_err(|error| sorted("cuEventElapsedTime", error, 0))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}
