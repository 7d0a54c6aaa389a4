//! What encoder workers run on: the devices of `situ.devices`, and the check that a worker makes of its own.
//!
//! The postmaster counts GPUs without CUDA, because a CUDA context does not survive a fork: it looks at the device
//! nodes that the driver makes. Whether a GPU can be used is found out by its worker, which takes it for lost
//! where it cannot.

use crate::model::{BadDevice, Device, OpenDevice};
use crate::serve::ipc::threads::spawn;
use std::path::{Path, PathBuf};

/// Most workers, the one that steps in for lost GPUs included.
pub const MOST_DEVICES: usize = 9;

/// A list of devices that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadDevices {
    #[error(transparent)]
    Name(#[from] BadDevice),
    #[error("more than {} devices", MOST_DEVICES - 1)]
    TooMany,
}

/// The devices of a setting: names with commas between them, or `auto` for as many GPUs as were found, and the
/// processor where there are none.
pub fn parse(setting: &str, gpus: u32) -> Result<Vec<Device>, BadDevices> {
    let devices: Vec<Device> = match setting.trim() {
        "auto" | "" if gpus == 0 => vec![Device::Cpu],
        "auto" | "" => (0..gpus).map(Device::Cuda).take(MOST_DEVICES - 1).collect(),
        list => list
            .split(',')
            .map(|name| name.trim().parse())
            .collect::<Result<_, BadDevice>>()?,
    };
    match devices.len() < MOST_DEVICES {
        true => Ok(devices),
        false => Err(BadDevices::TooMany),
    }
}

/// How many GPUs `auto` stands for. Starts no CUDA, so the postmaster may ask.
pub fn gpus() -> u32 {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    count_gpus(
        Path::new("/dev"),
        Path::new("/proc/driver/nvidia/gpus"),
        visible.as_deref(),
    )
}

/// Nodes `nvidia<number>` in `nodes`, which a container has only for its own GPUs; where there are none yet (the
/// driver makes them when it is first used), the GPUs that the driver lists in `listed`. `visible` is
/// `CUDA_VISIBLE_DEVICES`, where it is set: names with commas between them, up to the first that is none.
fn count_gpus(nodes: &Path, listed: &Path, visible: Option<&str>) -> u32 {
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let is_card = |name: &String| {
        let number = name.strip_prefix("nvidia").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let found = match names(nodes).filter(is_card).count() {
        0 => names(listed).count(),
        found => found,
    };
    let shown = visible.map_or(found, |visible| {
        let names = visible.split(',').map(str::trim);
        names.take_while(|name| !name.is_empty() && *name != "-1").count()
    });
    u32::try_from(found.min(shown)).unwrap_or(u32::MAX)
}

/// Opens the worker's device, which stays open as long as the value lives; fails with the reason where it does not
/// work. The kernels of a GPU are kept in `cache`. In a thread of its own, because CUDA starts threads, which
/// must not receive the server's signals.
pub fn open(device: Device, cache: PathBuf) -> Result<OpenDevice, String> {
    let thread = spawn("situ device", move || OpenDevice::open(device, Some(&cache)));
    let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
    match thread.join() {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err("the thread that opens it panicked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let read = |setting: &str, gpus| parse(setting, gpus).expect("devices");
        assert_eq!(read("auto", 0), [Device::Cpu]);
        assert_eq!(read("auto", 2), [Device::Cuda(0), Device::Cuda(1)]);
        assert_eq!(read(" cpu, cpu ", 1), [Device::Cpu, Device::Cpu]);
        assert_eq!(read("cuda:1,cpu", 0), [Device::Cuda(1), Device::Cpu]);
        assert_eq!(read("cuda", 0), [Device::Cuda(0)]);
        for name in ["gpu", "cuda:", "cuda:-1", "cpu:0", "cpu,,cpu", "cuda:99999999999"] {
            assert!(matches!(parse(name, 0), Err(BadDevices::Name(_))), "{name}");
        }
        let many = ["cpu"; MOST_DEVICES].join(",");
        assert!(matches!(parse(&many, 0), Err(BadDevices::TooMany)));
        assert_eq!(read("auto", 20).len(), MOST_DEVICES - 1);
    }

    #[test]
    fn gpus_are_counted_by_their_nodes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (nodes, listed) = (folder.path().join("dev"), folder.path().join("gpus"));
        assert_eq!(count_gpus(&nodes, &listed, None), 0, "no folders");
        std::fs::create_dir_all(listed.join("0000:01:00.0")).expect("a folder");
        std::fs::create_dir(&nodes).expect("a folder");
        for name in ["nvidiactl", "nvidia-uvm", "nvidia", "null"] {
            std::fs::write(nodes.join(name), "").expect("a file");
        }
        assert_eq!(count_gpus(&nodes, &listed, None), 1, "nodes are not there yet");
        for name in ["nvidia0", "nvidia3", "nvidia12"] {
            std::fs::write(nodes.join(name), "").expect("a file");
        }
        assert_eq!(count_gpus(&nodes, &listed, None), 3);
        for (visible, count) in [
            ("", 0),
            ("-1", 0),
            ("2", 1),
            ("0, 1", 2),
            ("1,-1,2", 1),
            ("0,1,2,3,4", 3),
        ] {
            assert_eq!(count_gpus(&nodes, &listed, Some(visible)), count, "{visible}");
        }
    }

    #[test]
    fn a_gpu_opens_and_one_that_is_not_there_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path().join("kernels");
        assert!(open(Device::Cpu, cache.clone()).is_ok());
        assert!(!cache.exists(), "the processor has no kernels to keep");
        let Some(_bench) = crate::compute::cuda::testing::bench() else {
            return;
        };
        let held = open(Device::Cuda(0), cache.clone()).expect("the GPU opens");
        assert!(cache.read_dir().expect("the cache").count() > 0, "kernels are kept");
        drop(held);
        let Err(reason) = open(Device::Cuda(63), cache) else {
            panic!("there is no such GPU");
        };
        assert!(reason.contains("there is no GPU 63"), "{reason}");
    }
}
