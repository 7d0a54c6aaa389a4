//! What a model runs on.

use super::ModelError;
use crate::compute::cuda;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// The processor, or a CUDA GPU by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    #[default]
    Cpu,
    Cuda(u32),
}

impl Device {
    /// Tokens beyond which a batch gains nothing. A GPU has two batches of 16,384 tokens under way.
    pub fn most_tokens(self) -> usize {
        match self {
            Device::Cpu => 16 << 10,
            Device::Cuda(_) => 64 << 10,
        }
    }
}

/// A name that is no device's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a device: \"cpu\" or \"cuda:<number>\"")]
pub struct BadDevice(pub String);

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => out.write_str("cpu"),
            Device::Cuda(ordinal) => write!(out, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = BadDevice;

    /// `cpu`, `cuda` (the first GPU) or `cuda:<number>`.
    fn from_str(name: &str) -> Result<Device, BadDevice> {
        let bad = || BadDevice(name.to_string());
        match name.split_once(':') {
            None if name == "cpu" => Ok(Device::Cpu),
            None if name == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                number.parse().map(Device::Cuda).map_err(|_| bad())
            }
            _ => Err(bad()),
        }
    }
}

/// A GPU that was found.
pub use cuda::GpuInfo;

/// The GPUs of this machine; none where CUDA is missing. Starts CUDA in this process, so never to be called in a
/// postmaster.
pub fn devices() -> Vec<GpuInfo> {
    cuda::gpus()
}

/// A device that is held open: models that are opened on it meanwhile share its kernels, which are found or compiled
/// once.
pub struct OpenDevice {
    _engine: Option<Arc<cuda::Engine>>,
}

impl OpenDevice {
    /// Fails where the device cannot run models: no such GPU, one too old, a library that is missing. `cache` is a
    /// directory in which a GPU's compiled kernels are kept; it is made where it is missing. Starts CUDA in this process
    /// where the device is a GPU, so never to be called in a postmaster.
    pub fn open(device: Device, cache: Option<&Path>) -> Result<OpenDevice, ModelError> {
        Ok(OpenDevice {
            _engine: match device {
                Device::Cpu => None,
                Device::Cuda(ordinal) => Some(cuda::Engine::shared(ordinal, cache)?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (name, device) in [
            ("cpu", Device::Cpu),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:12", Device::Cuda(12)),
        ] {
            assert_eq!(name.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for name in ["", "gpu", "cpu:0", "cuda:", "cuda:+1", "cuda:x", "cuda:99999999999"] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}
