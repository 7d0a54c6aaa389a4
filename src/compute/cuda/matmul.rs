//! Matrix products by cublasLt: bf16 in, f32 sums, bf16 out, the bias and an activation in the same kernel.
//!
//! A weight gets one algorithm when it is made, chosen for a large batch among those that do not divide a sum between
//! blocks, and keeps it for every number of rows. So a row's result does not depend on the rows beside it.

use super::super::{Activation, ComputeError};
use super::gpu::{Gpu, Memory, Stream};
use super::rounded::rounded;
use cudarc::cublaslt::{result, sys};
use half::bf16;
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes of scratch memory that a product may use; what NVIDIA advises for Hopper.
pub const SCRATCH: usize = 32 << 20;

/// Rows that an algorithm is chosen for, and others that it must take as well.
const BULK_ROWS: u64 = 8192;
const OTHER_ROWS: [u64; 4] = [1, 16, 500, 32_768];

/// Algorithms that the library is asked for.
const CANDIDATES: usize = 16;

/// cublasLt on one GPU.
pub struct Library {
    gpu: Arc<Gpu>,
    handle: sys::cublasLtHandle_t,
}

// SAFETY: cublasLt's handle may be used from any thread, at the same time too.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

fn check(call: &'static str, status: sys::cublasStatus_t) -> Result<(), ComputeError> {
    use sys::cublasStatus_t::*;
    match status {
        CUBLAS_STATUS_SUCCESS => Ok(()),
        CUBLAS_STATUS_ALLOC_FAILED => Err(ComputeError::DeviceMemory { bytes: 0 }),
        // The kernel could not be launched: the driver knows why, and a lost GPU shows there.
        CUBLAS_STATUS_EXECUTION_FAILED | CUBLAS_STATUS_INTERNAL_ERROR => {
            Err(ComputeError::DeviceLost(format!("{call}: {status:?}")))
        }
        other => Err(ComputeError::Device(format!("{call}: {other:?}"))),
    }
}

impl Library {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Library, ComputeError> {
        gpu.enter()?;
        let handle =
            result::create_handle().map_err(|error| ComputeError::Device(format!("cublasLtCreate: {error:?}")))?;
        Ok(Library {
            gpu: gpu.clone(),
            handle,
        })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

/// What happens to a sum before it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// The bias is added, where there is one.
    Bias,
    /// The bias, then the activation. Exact GELU is taken by its tanh form here, at most 5e-4 beside it, a fraction of a
    /// rounding of bf16 where it is largest.
    Activate(Activation),
}

impl Epilogue {
    /// The library's, with or without a bias.
    fn of_library(self, bias: bool) -> sys::cublasLtEpilogue_t {
        use sys::cublasLtEpilogue_t::*;
        match (self, bias) {
            (Epilogue::Bias, false) => CUBLASLT_EPILOGUE_DEFAULT,
            (Epilogue::Bias, true) => CUBLASLT_EPILOGUE_BIAS,
            (Epilogue::Activate(Activation::Relu), true) => CUBLASLT_EPILOGUE_RELU_BIAS,
            (Epilogue::Activate(Activation::Relu), false) => CUBLASLT_EPILOGUE_RELU,
            (Epilogue::Activate(_), true) => CUBLASLT_EPILOGUE_GELU_BIAS,
            (Epilogue::Activate(_), false) => CUBLASLT_EPILOGUE_GELU,
        }
    }
}

/// Shape and type of a matrix, destroyed when dropped.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Column-major, columns one behind the other.
    fn new(kind: sys::cudaDataType_t, rows: u64, columns: u64) -> Result<Layout, ComputeError> {
        result::create_matrix_layout(kind, rows, columns, rows as i64)
            .map(Layout)
            .map_err(|error| ComputeError::Device(format!("cublasLtMatrixLayoutCreate: {error:?}")))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The operation, destroyed when dropped.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Description, ComputeError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)
            .map(Description)
            .map_err(|error| ComputeError::Device(format!("cublasLtMatmulDescCreate: {error:?}")))?;
        // The weight is stored [outputs][inputs]: column-major it is inputs x outputs, and read transposed.
        description.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &1i32)?;
        description.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, &0i32)?;
        Ok(description)
    }

    fn set<V: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &V) -> Result<(), ComputeError> {
        let value: *const V = value;
        // SAFETY: the value is read before the call returns, with its own size.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value.cast(), size_of::<V>()) }
            .map_err(|error| ComputeError::Device(format!("cublasLtMatmulDescSetAttribute: {error:?}")))
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Limits on the search for an algorithm, destroyed when dropped.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Preference, ComputeError> {
        let failed = |error| ComputeError::Device(format!("cublasLtMatmulPreference: {error:?}"));
        let preference = Preference(result::create_matmul_pref().map_err(failed)?);
        let scratch = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let schemes = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        // No scheme is allowed to add up parts of a sum from several blocks.
        let (bytes, none) = (SCRATCH, 0u32);
        // SAFETY: the values are read before the calls return, with their own sizes.
        unsafe {
            result::set_matmul_pref_attribute(preference.0, scratch, (&raw const bytes).cast(), 8).map_err(failed)?;
            result::set_matmul_pref_attribute(preference.0, schemes, (&raw const none).cast(), 4).map_err(failed)?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// A linear layer on the gpu: `out = epilogue(x W^T + bias)`.
pub struct Product {
    library: Arc<Library>,
    weight: Memory<bf16>,
    bias: Option<Memory<bf16>>,
    pub inputs: usize,
    pub outputs: usize,
    description: Description,
    weight_layout: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptions and layouts are only read once made.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Product {
    /// Copies a weight `[outputs][inputs]` and a bias of `outputs` elements to the GPU, rounded to bf16. Both numbers are
    /// multiples of 8.
    pub fn new(
        library: &Arc<Library>,
        stream: &Stream,
        weight: &[f32],
        bias: Option<&[f32]>,
        inputs: usize,
        epilogue: Epilogue,
    ) -> Result<Product, ComputeError> {
        let outputs = weight.len() / inputs.max(1);
        let fits = bias.is_none_or(|bias| bias.len() == outputs);
        if !inputs.is_multiple_of(8)
            || !outputs.is_multiple_of(8)
            || outputs == 0
            || weight.len() != outputs * inputs
            || !fits
        {
            let (weights, biases) = (weight.len(), bias.map(<[f32]>::len));
            let what = format!("a product of {inputs} inputs with {weights} weights and {biases:?} biases");
            return Err(ComputeError::Shape(what));
        }
        let weight = Memory::from_slice(stream, &rounded(weight)?)?;
        let bias = bias
            .map(|bias| Memory::from_slice(stream, &rounded(bias)?))
            .transpose()?;
        let description = Description::new()?;
        let epilogue = epilogue.of_library(bias.is_some());
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE};
        description.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if let Some(bias) = &bias {
            description.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.address())?;
        }
        let weight_layout = Layout::new(sys::cudaDataType_t::CUDA_R_16BF, inputs as u64, outputs as u64)?;
        let choice = Choice {
            library,
            description: &description,
            weight: &weight_layout,
            inputs,
            outputs,
        };
        let algorithm = choice.best()?;
        Ok(Product {
            library: library.clone(),
            weight,
            bias,
            inputs,
            outputs,
            description,
            weight_layout,
            algorithm,
        })
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, Memory::bytes)
    }

    /// `rows` rows of `x` to rows of `out`. `scratch` is used by this stream alone.
    pub fn run(
        &self,
        stream: &Stream,
        x: &Memory<bf16>,
        out: &Memory<bf16>,
        rows: usize,
        scratch: &Memory<u8>,
    ) -> Result<(), ComputeError> {
        if rows == 0 || x.len() < rows * self.inputs || out.len() < rows * self.outputs {
            let (a, b) = (x.len(), out.len());
            return Err(ComputeError::Shape(format!(
                "a product of {rows} rows of {} to {} over {a} and {b} numbers",
                self.inputs, self.outputs
            )));
        }
        self.library.gpu.enter()?;
        let kind = sys::cudaDataType_t::CUDA_R_16BF;
        let (from, to) = (
            Layout::new(kind, self.inputs as u64, rows as u64)?,
            Layout::new(kind, self.outputs as u64, rows as u64)?,
        );
        let (one, zero) = (1.0f32, 0.0f32);
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: shapes fit the memory (just checked, and in `new`); scalars are read before the call returns; memory and
        // descriptions outlive the work, whose owner waits for the stream before it lets go of them.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.library.handle,
                self.description.0,
                (&raw const one).cast(),
                pointer(self.weight.address()),
                self.weight_layout.0,
                pointer(x.address()),
                from.0,
                (&raw const zero).cast(),
                pointer(out.address()),
                to.0,
                pointer(out.address()),
                to.0,
                &self.algorithm,
                pointer(scratch.address()),
                scratch.len(),
                stream.handle.cast(),
            )
        };
        check("cublasLtMatmul", status)
    }
}

/// The choice of an algorithm for a weight.
struct Choice<'a> {
    library: &'a Library,
    description: &'a Description,
    weight: &'a Layout,
    inputs: usize,
    outputs: usize,
}

impl Choice<'_> {
    /// The best algorithm for a large batch that keeps each sum in one block and takes every number of rows.
    fn best(&self) -> Result<sys::cublasLtMatmulAlgo_t, ComputeError> {
        self.library.gpu.enter()?;
        for candidate in self.candidates()? {
            let algorithm = candidate.algo;
            if !divides_sums(&algorithm) && self.takes_other_rows(&algorithm)? {
                return Ok(algorithm);
            }
        }
        Err(ComputeError::Device(format!(
            "cublasLt has no algorithm for a product of {} to {} numbers",
            self.inputs, self.outputs
        )))
    }

    /// The layouts of so many rows that go in and come out.
    fn layouts(&self, rows: u64) -> Result<(Layout, Layout), ComputeError> {
        let kind = sys::cudaDataType_t::CUDA_R_16BF;
        Ok((
            Layout::new(kind, self.inputs as u64, rows)?,
            Layout::new(kind, self.outputs as u64, rows)?,
        ))
    }

    /// What the library suggests for a large batch, the best first.
    fn candidates(&self) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, ComputeError> {
        let preference = Preference::new()?;
        let (from, to) = self.layouts(BULK_ROWS)?;
        // SAFETY: a heuristic result is plain data, and zero bits are a value of it (state 0 is success).
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: all descriptions live; `found` has the number of places that is named.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.library.handle,
                self.description.0,
                self.weight.0,
                from.0,
                to.0,
                to.0,
                preference.0,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        Ok(found.into_iter().take(count.max(0) as usize).collect())
    }

    /// Whether an algorithm takes every number of rows in the scratch memory that there is.
    fn takes_other_rows(&self, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<bool, ComputeError> {
        for rows in OTHER_ROWS {
            let (from, to) = self.layouts(rows)?;
            // SAFETY: all descriptions live; the result is plain data, as above.
            let (status, scratch) = unsafe {
                let mut checked: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
                let status = sys::cublasLtMatmulAlgoCheck(
                    self.library.handle,
                    self.description.0,
                    self.weight.0,
                    from.0,
                    to.0,
                    to.0,
                    algorithm,
                    &mut checked,
                );
                (status, checked.workspaceSize)
            };
            if status != sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS || scratch > SCRATCH {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether an algorithm divides a sum between blocks.
fn divides_sums(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    use sys::cublasLtMatmulAlgoConfigAttributes_t::*;
    let most = [
        (CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 1),
        (CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 0),
    ];
    most.into_iter().any(|(attribute, most)| {
        let (mut value, mut written) = (0u32, 0usize);
        // SAFETY: the value has the four bytes that are named.
        let status = unsafe {
            sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, (&raw mut value).cast(), 4, &mut written)
        };
        status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && value > most
    })
}
