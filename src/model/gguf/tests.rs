//! Hand-made files: what is read back, and everything that can be wrong with a header. Blocks against candle's.

use super::*;
use crate::compute::ComputeError;
use crate::compute::memory::scarce::at_most;
use crate::model::llm::files::LlmFiles;
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};

/// A file under construction.
struct Made {
    version: u32,
    values: Vec<(String, u32, Vec<u8>)>,
    /// Name, shape (fastest first), type, offset.
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
    /// Counts that are written instead of the true ones.
    counts: Option<(u64, u64)>,
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl Made {
    fn new() -> Made {
        let values = vec![
            ("a.text".to_owned(), 8, text("words")),
            ("a.number".to_owned(), 4, 7u32.to_le_bytes().to_vec()),
            ("a.flag".to_owned(), 7, vec![1]),
            ("a.float".to_owned(), 6, 1.5f32.to_le_bytes().to_vec()),
            (
                "a.list".to_owned(),
                9,
                [
                    &5u32.to_le_bytes()[..],
                    &2u64.to_le_bytes(),
                    &(-3i32).to_le_bytes(),
                    &4i32.to_le_bytes(),
                ]
                .concat(),
            ),
        ];
        Made {
            version: 3,
            values,
            tensors: vec![
                ("one".to_owned(), vec![2, 3], 0, 0),
                ("two".to_owned(), vec![32], 2, 32),
            ],
            data: (0..6)
                .flat_map(|n| (n as f32).to_le_bytes())
                .chain([0; 8])
                .chain(half::f16::from_f32(0.5).to_le_bytes())
                .chain((0..16).map(|n| n | (15 - n) << 4))
                .collect(),
            counts: None,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        let (tensors, values) = self
            .counts
            .unwrap_or((self.tensors.len() as u64, self.values.len() as u64));
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(values.to_le_bytes());
        for (key, kind, value) in &self.values {
            bytes.extend(text(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for (name, shape, kind, offset) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|length| bytes.extend(length.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn open(&self) -> Result<Gguf, ModelError> {
        open(&self.bytes())
    }
}

fn open(bytes: &[u8]) -> Result<Gguf, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

#[test]
fn what_was_written_is_read() {
    for version in [2, 3] {
        let file = Made { version, ..Made::new() };
        let file = file.open().unwrap();
        assert_eq!(file.value("a.text"), Some(&Value::Text("words".to_owned())));
        assert_eq!(file.value("a.number"), Some(&Value::Integer(7)));
        assert_eq!(file.value("a.flag"), Some(&Value::Bool(true)));
        assert_eq!(file.value("a.float"), Some(&Value::Float(1.5)));
        assert_eq!(file.value("a.list"), Some(&Value::Integers(vec![-3, 4])));
        assert_eq!(file.value("nothing"), None);
        assert_eq!(file.info("one").unwrap().shape, [3, 2]);
        let numbers: Vec<f32> = file
            .read("one")
            .unwrap()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        assert_eq!(numbers, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        // d = 0.5, low halves 0..15 first, high ones 15..0: number = 0.5 (q - 8).
        let mut out = [0.0f32; 32];
        BlockKind::Q4_0.dequantise(&file.read("two").unwrap(), &mut out);
        let expected: Vec<f32> = (0..16).chain((0..16).rev()).map(|q| 0.5 * (q as f32 - 8.0)).collect();
        assert_eq!(out.to_vec(), expected);
        assert!(matches!(file.read("three"), Err(ModelError::MissingTensor(_))));
    }
}

#[test]
fn every_cut_is_an_error() {
    let bytes = Made::new().bytes();
    for cut in 0..bytes.len() {
        assert!(open(&bytes[..cut]).is_err(), "{cut}");
    }
    assert!(open(&bytes).is_ok());
}

#[test]
fn a_flipped_byte_never_panics_or_asks_for_much() {
    let bytes = Made::new().bytes();
    for place in 0..bytes.len() - 50 {
        for flip in [0x01, 0x80, 0xff] {
            let mut other = bytes.clone();
            other[place] ^= flip;
            if let Ok(file) = open(&other) {
                let names: Vec<String> = file.tensors().map(|(name, _)| name.to_owned()).collect();
                names.iter().for_each(|name| drop(file.read(name)));
            }
        }
    }
}

#[test]
fn absurd_headers_are_refused() {
    let bad = |change: &dyn Fn(&mut Made)| {
        let mut made = Made::new();
        change(&mut made);
        made.open().err().expect("refused").to_string()
    };
    assert!(bad(&|made| made.version = 1).contains("version"));
    assert!(bad(&|made| made.version = 3u32.swap_bytes()).contains("big-endian"));
    assert!(bad(&|made| made.counts = Some((u64::MAX, 1))).contains("do not fit"));
    assert!(bad(&|made| made.counts = Some((1, u64::MAX))).contains("do not fit"));
    assert!(bad(&|made| made.values.push(("a.text".to_owned(), 7, vec![1]))).contains("twice"));
    assert!(bad(&|made| made.values.push(("x".to_owned(), 99, vec![]))).contains("99"));
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    assert!(bad(&move |made| made.values.push(("x".to_owned(), 9, nested.clone()))).contains("array of arrays"));
    let long = [&4u32.to_le_bytes()[..], &(1u64 << 60).to_le_bytes()].concat();
    assert!(bad(&move |made| made.values.push(("x".to_owned(), 9, long.clone()))).contains("left"));
    assert!(
        bad(&|made| made
            .values
            .push(("x".to_owned(), 8, (1u64 << 62).to_le_bytes().to_vec())))
        .contains("left")
    );
    let alignment = |number: u32| ("general.alignment".to_owned(), 4, number.to_le_bytes().to_vec());
    assert!(bad(&|made| made.values.push(alignment(3))).contains("alignment"));
    assert!(bad(&|made| made.tensors[0].0 = "two".to_owned()).contains("twice"));
    assert!(bad(&|made| made.tensors[0].1 = vec![]).contains("dimensions"));
    assert!(bad(&|made| made.tensors[0].1 = vec![1; 5]).contains("dimensions"));
    assert!(bad(&|made| made.tensors[0].1 = vec![0, 3]).contains("shape"));
    assert!(bad(&|made| made.tensors[0].1 = vec![1 << 40, 1 << 40]).contains("shape"));
    assert!(bad(&|made| made.tensors[1].1 = vec![33]).contains("shape"));
    assert!(bad(&|made| made.tensors[1].3 = 33).contains("aligned"));
    assert!(bad(&|made| made.tensors[1].3 = 1 << 40).contains("behind the file's end"));
    assert!(bad(&|made| made.tensors[1].3 = u64::MAX - 31).contains("behind the file's end"));
    // A type that is not known does not keep others from being read.
    let mut made = Made::new();
    made.tensors[1].2 = 99;
    let file = made.open().unwrap();
    assert!(file.read("one").is_ok());
    assert!(matches!(
        file.read("two"),
        Err(ModelError::Unsupported {
            what: "tensor type",
            ..
        })
    ));
}

#[test]
fn a_tensor_that_finds_no_memory_is_an_error() {
    let mut made = Made::new();
    made.tensors = vec![("huge".to_owned(), vec![1 << 30, 1 << 8], 0, 0)];
    let bytes = made.bytes();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    // A sparse file: it takes no room on the disk.
    file.as_file().set_len(bytes.len() as u64 + (1 << 40)).unwrap();
    let gguf = Gguf::open(file.path()).unwrap();
    let read = at_most(1 << 30, || gguf.read("huge"));
    assert!(
        matches!(read, Err(ModelError::Compute(ComputeError::Memory { bytes })) if bytes == 1 << 40),
        "{:?}",
        read.err()
    );
}

#[test]
fn values_that_find_no_memory_are_an_error() {
    let mut made = Made::new();
    let list =
        |kind: u32, count: u64, content: Vec<u8>| [&kind.to_le_bytes()[..], &count.to_le_bytes(), &content].concat();
    let texts: Vec<u8> = (0..40_000).flat_map(|_| text("a word")).collect();
    for value in [
        (8, text(&"x".repeat(2 << 20))),
        (9, list(0, 2 << 20, vec![0; 2 << 20])),
        (9, list(6, 1 << 19, vec![0; 2 << 20])),
        (9, list(5, 1 << 19, vec![0; 2 << 20])),
        (9, list(8, 40_000, texts)),
    ] {
        made.values[0] = ("a.value".to_owned(), value.0, value.1);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), made.bytes()).unwrap();
        assert!(Gguf::open(file.path()).is_ok());
        // A megabyte is what is read at once.
        let short = at_most((1 << 20) + 4096, || Gguf::open(file.path()));
        let memory = matches!(short, Err(ModelError::Compute(ComputeError::Memory { .. })));
        assert!(memory || value.0 == 9 && short.is_ok(), "{:?}", short.err());
    }
}

#[test]
fn a_file_without_what_a_model_needs_names_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.gguf");
    std::fs::write(&path, Made::new().bytes()).unwrap();
    let error = LlmFiles::open(&path).err().unwrap().to_string();
    assert!(error.contains("general.architecture"), "{error}");
}

#[test]
fn blocks_are_unpacked_as_candle_does() {
    let numbers: Vec<f32> = (0..512)
        .map(|n| ((n * 37 % 101) as f32 - 50.0) / 25.0 * (1.0 + (n / 64) as f32))
        .collect();
    let tensor = candle_core::Tensor::from_vec(numbers.clone(), 512, &Device::Cpu).unwrap();
    for (kind, dtype) in [
        (BlockKind::Q4_0, GgmlDType::Q4_0),
        (BlockKind::Q4_1, GgmlDType::Q4_1),
        (BlockKind::Q5_0, GgmlDType::Q5_0),
        (BlockKind::Q5_1, GgmlDType::Q5_1),
        (BlockKind::Q8_0, GgmlDType::Q8_0),
        (BlockKind::Q4_K, GgmlDType::Q4K),
        (BlockKind::Q5_K, GgmlDType::Q5K),
        (BlockKind::Q6_K, GgmlDType::Q6K),
    ] {
        let quantised = QTensor::quantize(&tensor, dtype).unwrap();
        let expected = quantised.dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
        let bytes = quantised.data().unwrap();
        assert_eq!(bytes.len(), kind.row_bytes(512).unwrap(), "{kind:?}");
        assert!(kind.is_finite(&bytes));
        let mut found = vec![0.0f32; 512];
        kind.dequantise(&bytes, &mut found);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "{kind:?} {found} {expected}"
            );
        }
        // And those are near what was quantised.
        let off = found
            .iter()
            .zip(&numbers)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f32, f32::max);
        assert!(off < 2.5, "{kind:?} {off}");
    }
}
