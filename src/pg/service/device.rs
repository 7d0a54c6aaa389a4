//! What encoder workers run on: the names in `situ.devices`.

use std::fmt;
use std::str::FromStr;

/// Most workers, the one that steps in for lost cards included.
pub const MOST_DEVICES: usize = 9;

/// The processor, or a CUDA card by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda(u32),
}

/// A list of devices that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDevices {
    #[error("\"{0}\" is not a device: \"cpu\" or \"cuda:<number>\"")]
    Name(String),
    #[error("more than {} devices", MOST_DEVICES - 1)]
    TooMany,
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => out.write_str("cpu"),
            Device::Cuda(number) => write!(out, "cuda:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = BadDevices;

    fn from_str(name: &str) -> Result<Device, BadDevices> {
        let bad = || BadDevices::Name(name.to_owned());
        match name.split_once(':') {
            None if name == "cpu" => Ok(Device::Cpu),
            Some(("cuda", number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                number.parse().map(Device::Cuda).map_err(|_| bad())
            }
            _ => Err(bad()),
        }
    }
}

/// The devices of a setting: names with commas between them, or `auto` for the cards that were found, and the
/// processor where there are none.
pub fn parse(setting: &str, cards: &[u32]) -> Result<Vec<Device>, BadDevices> {
    let devices: Vec<Device> = match setting.trim() {
        "auto" | "" if cards.is_empty() => vec![Device::Cpu],
        "auto" | "" => cards
            .iter()
            .map(|card| Device::Cuda(*card))
            .take(MOST_DEVICES - 1)
            .collect(),
        list => list
            .split(',')
            .map(|name| name.trim().parse())
            .collect::<Result<_, _>>()?,
    };
    match devices.len() < MOST_DEVICES {
        true => Ok(devices),
        false => Err(BadDevices::TooMany),
    }
}

/// Numbers of the cards that `auto` stands for: none, as this build runs no models on cards.
pub fn cards() -> Vec<u32> {
    Vec::new()
}

/// Fails where a worker for the device cannot work.
pub fn probe(device: Device) -> Result<(), String> {
    match device {
        Device::Cpu => Ok(()),
        Device::Cuda(_) => Err("this build of situ runs no models on cards".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(parse("auto", &[]), Ok(vec![Device::Cpu]));
        assert_eq!(parse("auto", &[0, 3]), Ok(vec![Device::Cuda(0), Device::Cuda(3)]));
        assert_eq!(parse(" cpu, cpu ", &[0]), Ok(vec![Device::Cpu, Device::Cpu]));
        assert_eq!(parse("cuda:1,cpu", &[]), Ok(vec![Device::Cuda(1), Device::Cpu]));
        for name in [
            "gpu",
            "cuda",
            "cuda:",
            "cuda:-1",
            "cpu:0",
            "cpu,,cpu",
            "cuda:99999999999",
        ] {
            assert!(matches!(parse(name, &[]), Err(BadDevices::Name(_))), "{name}");
        }
        assert_eq!(parse(&["cpu"; MOST_DEVICES].join(","), &[]), Err(BadDevices::TooMany));
        assert_eq!(
            parse("auto", &(0..20).collect::<Vec<_>>()).map(|all| all.len()),
            Ok(MOST_DEVICES - 1)
        );
    }
}
