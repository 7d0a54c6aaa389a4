//! The error of this module.

/// What can go wrong while a batch runs.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A thread could not be started.
    #[error("cannot start thread {index} of {threads}: {source}")]
    Spawn {
        index: usize,
        threads: usize,
        source: std::io::Error,
    },
    /// A task panicked; the others of its loop were not started any more.
    #[error("a compute task panicked: {0}")]
    Panicked(String),
    /// The caller's stop hook answered true.
    #[error("the batch was stopped")]
    Stopped,
    /// Tensors whose shapes do not fit each other, or an id outside its table.
    #[error("{0}")]
    Shape(String),
    /// The system refused memory.
    #[error("cannot allocate {bytes} bytes")]
    Memory { bytes: usize },
    /// The processor lacks the instructions that the precision needs.
    #[error("precision {precision} needs {needs}, which this processor lacks")]
    Unsupported {
        precision: &'static str,
        needs: &'static str,
    },
    /// A library of CUDA is not on this machine.
    #[error("{library} cannot be loaded")]
    Library { library: &'static str },
    /// The GPU or one of CUDA's libraries refused a call.
    #[error("CUDA: {0}")]
    Device(String),
    /// The GPU has not that much memory left (0 bytes: the library did not say).
    #[error("the GPU has no memory for another {bytes} bytes")]
    DeviceMemory { bytes: usize },
    /// The GPU does not answer any more, or a kernel ended in an error that takes the GPU from this process.
    #[error("the GPU is lost: {0}")]
    DeviceLost(String),
    /// A kernel's source does not compile for this GPU.
    #[error("kernel {file} does not compile: {log}")]
    Kernel { file: &'static str, log: String },
}
