//! The kernels, compiled for the GPU at hand by NVRTC and kept on disk.
//!
//! A kept file is named after the kernel's file, the architecture and a hash of everything that makes the result: source,
//! options, architecture and the compiler's version. It holds the SHA-256 of the machine code, then the machine code. A
//! file that is cut short or altered does not match its hash and is compiled again; it is written under another name and
//! renamed, so several processes may share the directory. A directory that cannot be written costs time, nothing else.

use super::super::ComputeError;
use super::gpu::{Gpu, sorted};
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{result as compiler, sys as nvrtc};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;

const COMMON: &str = include_str!("../../../kernels/common.cuh");

/// The kernels' files, without what they share.
const FILES: [(&str, &str); 8] = [
    ("activation", include_str!("../../../kernels/activation.cu")),
    ("attention", include_str!("../../../kernels/attention.cu")),
    ("layer_norm", include_str!("../../../kernels/layer_norm.cu")),
    ("nearest", include_str!("../../../kernels/nearest.cu")),
    ("pooling", include_str!("../../../kernels/pooling.cu")),
    ("rabitq", include_str!("../../../kernels/rabitq.cu")),
    ("rms_norm", include_str!("../../../kernels/rms_norm.cu")),
    ("rope", include_str!("../../../kernels/rope.cu")),
];

const OPTIONS: [&str; 2] = ["--std=c++17", "--extra-device-vectorization"];

/// Bytes of the hash before the machine code.
const HASH: usize = 32;

/// A kernel of a loaded module.
#[derive(Clone, Copy)]
pub struct Kernel(pub(super) sys::CUfunction);

// SAFETY: a function's handle may be used from any thread once the context is current there.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// All kernels, loaded on one GPU.
pub struct Kernels {
    gpu: Arc<Gpu>,
    modules: Vec<sys::CUmodule>,
    by_name: HashMap<&'static str, Kernel>,
}

// SAFETY: modules are only touched in `drop`.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// Where a file's kernels are used, by name: found once when the file is loaded.
const NAMES: [(&str, &[&str]); 8] = [
    ("activation", &["bias_activation", "swiglu"]),
    (
        "attention",
        &[
            "attention_32_4",
            "attention_32_8",
            "attention_64_4",
            "attention_64_8",
            "attention_96_4",
            "attention_96_8",
            "attention_128_4",
            "attention_128_8",
            "attention_causal_32_4",
            "attention_causal_32_8",
            "attention_causal_64_4",
            "attention_causal_64_8",
            "attention_causal_96_4",
            "attention_causal_96_8",
            "attention_causal_128_4",
            "attention_causal_128_8",
        ],
    ),
    (
        "layer_norm",
        &[
            "embed_layer_norm_2",
            "embed_layer_norm_4",
            "embed_layer_norm_8",
            "embed_layer_norm_16",
            "residual_layer_norm_2",
            "residual_layer_norm_4",
            "residual_layer_norm_8",
            "residual_layer_norm_16",
        ],
    ),
    ("nearest", &["nearest_centroid"]),
    ("pooling", &["pool_spans"]),
    ("rabitq", &["rotate", "encode"]),
    (
        "rms_norm",
        &[
            "residual_rms_norm_2",
            "residual_rms_norm_4",
            "residual_rms_norm_8",
            "residual_rms_norm_16",
            "embed_tokens",
        ],
    ),
    ("rope", &["rope"]),
];

impl Kernels {
    /// Loads all kernels for the GPU; compiles those that `cache` does not hold.
    pub fn load(gpu: &Arc<Gpu>, cache: Option<&Path>) -> Result<Kernels, ComputeError> {
        gpu.enter()?;
        let version = version()?;
        let (major, minor) = gpu.info.capability;
        let architecture = format!("sm_{major}{minor}");
        let mut kernels = Kernels {
            gpu: gpu.clone(),
            modules: Vec::new(),
            by_name: HashMap::new(),
        };
        for (file, source) in FILES {
            let kept = cache.map(|folder| {
                let key = key(file, source, &architecture, version);
                folder.join(format!("{file}-{architecture}-{}.cubin", &key[..32]))
            });
            let found = kept.as_deref().and_then(read);
            let loaded = found.and_then(|image| load(&image).ok());
            let module = match loaded {
                Some(module) => module,
                None => {
                    let image = compile(file, source, &architecture)?;
                    if let Some(path) = &kept {
                        write(path, &image);
                    }
                    load(&image)?
                }
            };
            kernels.modules.push(module);
            let names = NAMES
                .iter()
                .filter(|(other, _)| *other == file)
                .flat_map(|(_, names)| names.iter());
            for name in names {
                let c_name = CString::new(*name).map_err(|error| ComputeError::Device(error.to_string()))?;
                // SAFETY: the module was just loaded and lives as long as `kernels`.
                let function = unsafe { result::module::get_function(module, c_name) }
                    .map_err(|error| sorted("cuModuleGetFunction", error, 0))?;
                kernels.by_name.insert(name, Kernel(function));
            }
        }
        kernels.allow_shared_memory()?;
        Ok(kernels)
    }

    /// Lets kernels use more shared memory than a block gets unasked.
    fn allow_shared_memory(&self) -> Result<(), ComputeError> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        for (name, kernel) in &self.by_name {
            let bytes = super::shared_memory::shared_memory(name).min(self.gpu.shared_memory);
            if bytes > 0 {
                // SAFETY: the function belongs to a loaded module.
                unsafe { result::function::set_function_attribute(kernel.0, attribute, bytes as i32) }
                    .map_err(|error| sorted("cuFuncSetAttribute", error, 0))?;
            }
        }
        Ok(())
    }

    /// The kernel of that name.
    pub(super) fn get(&self, name: &str) -> Result<Kernel, ComputeError> {
        let found = self.by_name.get(name).copied();
        found.ok_or_else(|| ComputeError::Device(format!("there is no kernel \"{name}\"")))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            for module in &self.modules {
                // SAFETY: loaded in `load`, unloaded once.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}

/// The compiler's version: major, minor.
fn version() -> Result<(i32, i32), ComputeError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two places to write to.
    let status = unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
    status
        .result()
        .map_err(|error| ComputeError::Device(format!("nvrtcVersion: {error}")))?;
    Ok((major, minor))
}

/// Hex SHA-256 of everything that makes the machine code.
fn key(file: &str, source: &str, architecture: &str, version: (i32, i32)) -> String {
    let mut hash = Sha256::new();
    let settings = format!("{file} {architecture} {version:?} {OPTIONS:?} ");
    for part in [settings.as_str(), COMMON, source] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The machine code of a kept file, if it is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let content = std::fs::read(path).ok()?;
    let (hash, image) = content.split_at_checked(HASH)?;
    (Sha256::digest(image).as_slice() == hash).then(|| image.to_vec())
}

/// Keeps machine code. A failure is not one of the caller's: the next load compiles again.
fn write(path: &Path, image: &[u8]) {
    let mut content = Sha256::digest(image).to_vec();
    content.extend_from_slice(image);
    let other = path.with_extension(format!("{}.new", std::process::id()));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&other, content))
        .and_then(|()| std::fs::rename(&other, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&other);
    }
}

fn load(image: &[u8]) -> Result<sys::CUmodule, ComputeError> {
    // SAFETY: the image is machine code that the compiler made (its hash was checked); the driver reads its header first.
    unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|error| sorted("cuModuleLoadData", error, 0))
}

/// A program of the compiler, destroyed when dropped.
struct Program(nvrtc::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created in `compile`, destroyed once.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn compile(file: &'static str, source: &str, architecture: &str) -> Result<Vec<u8>, ComputeError> {
    let failed = |log: String| ComputeError::Kernel { file, log };
    let text = |text: String| CString::new(text).map_err(|error| failed(error.to_string()));
    let whole = text(format!("{COMMON}\n#line 1\n{source}"))?;
    let name = text(format!("{file}.cu"))?;
    let program = compiler::create_program(&whole, Some(&name)).map_err(|error| failed(error.to_string()))?;
    let program = Program(program);
    let mut options: Vec<String> = OPTIONS.iter().map(|option| option.to_string()).collect();
    options.push(format!("--gpu-architecture={architecture}"));
    // SAFETY: the program lives until the end of this function.
    unsafe {
        if let Err(error) = compiler::compile_program(program.0, &options) {
            let log = compiler::get_program_log(program.0).unwrap_or_default();
            let bytes: Vec<u8> = log.iter().map(|byte| *byte as u8).chain([0]).collect();
            let log = CStr::from_bytes_until_nul(&bytes)
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            return Err(failed(format!("{error} for {architecture}: {log}")));
        }
        let mut size = 0usize;
        let status = nvrtc::nvrtcGetCUBINSize(program.0, &mut size);
        status.result().map_err(|error| failed(error.to_string()))?;
        let mut image = vec![0u8; size];
        let status = nvrtc::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast());
        status.result().map_err(|error| failed(error.to_string()))?;
        Ok(image)
    }
}
