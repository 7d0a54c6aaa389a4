//! A matrix in the file format of `torch.save`, version 3: a zip archive of stored members with `data.pkl`, a pickle
//! (protocol 2) of the tensor, its elements in `data/0`, `byteorder` and `version`. Members' data begin on 64-byte borders,
//! as PyTorch's own writer has it.

use std::io::{Cursor, Write};
use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Folder of the members in the archive.
const FOLDER: &str = "archive";
/// Border on which the data of a member begins.
const BORDER: u16 = 64;

/// The pickle's parts before, between and after its numbers: `torch._utils._rebuild_tensor_v2(('storage',
/// torch.FloatStorage, '0', 'cpu', count), 0, (rows, columns), (columns, 1), False, OrderedDict())`.
const HEAD: &[u8] = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
                      X\x01\x00\x00\x000X\x03\x00\x00\x00cpu";
const TAIL: &[u8] = b"\x89ccollections\nOrderedDict\n)RtR.";

/// A pickled number: LONG1 with its little-endian bytes, one more than needed so that it is never negative.
fn number(value: usize, pickle: &mut Vec<u8>) {
    pickle.extend_from_slice(b"\x8a\x09");
    pickle.extend_from_slice(&(value as u64).to_le_bytes());
    pickle.push(0);
}

fn pickle(rows: usize, columns: usize) -> Vec<u8> {
    let mut pickle = HEAD.to_vec();
    number(rows * columns, &mut pickle);
    // The storage's tuple ends and becomes a persistent id; the tensor begins at its number 0.
    pickle.extend_from_slice(b"tQK\x00");
    number(rows, &mut pickle);
    number(columns, &mut pickle);
    pickle.push(0x86);
    number(columns, &mut pickle);
    pickle.extend_from_slice(b"K\x01\x86");
    pickle.extend_from_slice(TAIL);
    pickle
}

/// A matrix of `columns` elements a row as a file of `torch.save`; `None` where `values` is no such matrix or is beyond the
/// 4 GB of a plain zip archive.
pub fn save(values: &[f32], columns: usize) -> Option<Vec<u8>> {
    let rows = values.len().checked_div(columns)?;
    if rows * columns != values.len() || values.len() > (u32::MAX / 8) as usize {
        return None;
    }
    let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let members: [(&str, &[u8]); 4] = [
        ("data.pkl", &pickle(rows, columns)),
        ("byteorder", b"little"),
        ("data/0", &elements),
        ("version", b"3\n"),
    ];
    archive(&members, elements.len()).ok()
}

/// The members, stored, as an archive; `bytes` are about how many it has.
fn archive(members: &[(&str, &[u8])], bytes: usize) -> ZipResult<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::with_capacity(bytes + 4096)));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(BORDER);
    for (name, data) in members {
        writer.start_file(format!("{FOLDER}/{name}"), options)?;
        writer.write_all(data)?;
    }
    Ok(writer.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Reads the archive with Python's own zip and pickle modules, with stand-ins for PyTorch's classes.
    const READER: &str = r#"
import io, pickle, struct, sys, zipfile
data = sys.stdin.buffer.read()
archive = zipfile.ZipFile(io.BytesIO(data))
assert archive.testzip() is None
assert archive.read("archive/version") == b"3\n" and archive.read("archive/byteorder") == b"little"
for info in archive.infolist():
    name, extra = struct.unpack("<HH", data[info.header_offset + 26:info.header_offset + 30])
    assert (info.header_offset + 30 + name + extra) % 64 == 0
def rebuild(storage, offset, size, stride, gradient, hooks):
    assert offset == 0 and stride == (size[1], 1) and gradient is False and not hooks
    assert len(storage) == size[0] * size[1]
    return [storage[row * size[1]:(row + 1) * size[1]] for row in range(size[0])]
class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("torch", "FloatStorage"):
            return "float"
        assert (module, name) == ("collections", "OrderedDict")
        return dict
    def persistent_load(self, key):
        assert key[:4] == ("storage", "float", "0", "cpu"), key
        raw = archive.read("archive/data/0")
        assert len(raw) == 4 * key[4]
        return struct.unpack(f"<{key[4]}f", raw)
rows = Reader(io.BytesIO(archive.read("archive/data.pkl"))).load()
print(";".join(",".join(repr(float(value)) for value in row) for row in rows))
"#;

    /// PyTorch, with what vLLM asks of a prompt's tensor.
    const TORCH: &str = r#"
import io, sys, torch
tensor = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=True, map_location=torch.device("cpu"))
assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and tensor.dim() == 2
assert tensor.is_contiguous() and not tensor.requires_grad
print(";".join(",".join(repr(float(value)) for value in row) for row in tensor.to_dense().tolist()))
"#;

    #[test]
    fn python_reads_what_was_saved() {
        match Command::new("python3").arg("--version").output() {
            Ok(_) => check("python3", READER),
            Err(_) => println!("SKIPPED: python3 is not there"),
        }
    }

    #[test]
    fn torch_loads_what_was_saved() {
        let python = std::env::var("SITU_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let there = Command::new(&python).args(["-c", "import torch"]).output();
        match there.is_ok_and(|output| output.status.success()) {
            true => check(&python, TORCH),
            false => println!("SKIPPED: {python} has no torch; SITU_TEST_PYTHON may name another"),
        }
    }

    fn check(python: &str, reader: &str) {
        let values: Vec<f32> = (0..600).map(|i| (i as f32 - 300.0) / 8.0).collect();
        for columns in [1, 3, 300] {
            let file = save(&values, columns).expect("a matrix");
            let mut child = Command::new(python)
                .args(["-c", reader])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("python starts");
            child.stdin.take().expect("a pipe").write_all(&file).expect("written");
            let output = child.wait_with_output().expect("python ends");
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).expect("text");
            let rows: Vec<Vec<f32>> = text
                .trim()
                .split(';')
                .map(|row| row.split(',').map(|value| value.parse().expect("a number")).collect())
                .collect();
            assert_eq!(rows.len(), 600 / columns);
            assert_eq!(rows.concat(), values);
        }
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        assert!(save(&[1.0; 5], 2).is_none());
        assert!(save(&[1.0; 5], 0).is_none());
    }
}
