"""Compiles kernels/*.cu with NVRTC for several architectures, without a card, and prints what each kernel takes.

Usage: kernels.py LIBRARY_FOLDER OUTPUT_FOLDER ARCHITECTURE ...

A line a kernel and architecture: registers, bytes spilled to local memory, stack, static shared memory. The report of a file is
kept in OUTPUT_FOLDER under the hash of its source and printed from there when nothing has changed. Exit status 1 where
a file does not compile, or a kernel spills.
"""

import ctypes
import hashlib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The options that src/compute/cuda/compile.rs gives; ptxas reports what each kernel takes.
OPTIONS = ["--std=c++17", "--extra-device-vectorization", "--ptxas-options=-v"]


class Compiler:
    """NVRTC from a folder of its shared libraries."""

    def __init__(self, folder: pathlib.Path) -> None:
        builtins = sorted(folder.glob("libnvrtc-builtins.so*"))
        for library in builtins:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(next(iter(sorted(folder.glob("libnvrtc.so*"))))))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, name: str, source: bytes, architecture: str) -> tuple[bool, str]:
        """Whether the source compiles, and the compiler's report."""
        program = ctypes.c_void_p()
        self.library.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None)
        options = [f"--gpu-architecture={architecture}", *OPTIONS]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        status = self.library.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.library.nvrtcGetProgramLog(program, log)
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return status == 0, log.value.decode()


def main(libraries: str, output: str, architectures: list[str]) -> int:
    compiler = Compiler(pathlib.Path(libraries))
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    common = (ROOT / "kernels/common.cuh").read_bytes()
    failed = False
    print(f"NVRTC {compiler.version}")
    print(f"{'kernel':32} {'for':6} {'registers':>9} {'spilled':>8} {'stack':>6} {'shared':>7}")
    for path in sorted((ROOT / "kernels").glob("*.cu")):
        source = common + b"#line 1\n" + path.read_bytes()
        for architecture in architectures:
            key = hashlib.sha256(repr((compiler.version, OPTIONS, architecture)).encode() + source).hexdigest()[:16]
            kept = folder / f"{path.stem}-{architecture}-{key}.log"
            if kept.exists():
                report = kept.read_text()
            else:
                compiled, report = compiler.compile(path.name, source, architecture)
                if not compiled:
                    print(report)
                    print(f"error: {path.name} does not compile for {architecture}")
                    failed = True
                    continue
                kept.write_text(report)
            failed |= show(report, architecture)
    return int(failed)


def show(report: str, architecture: str) -> bool:
    """Prints what the kernels of a report take; true where one spills."""
    spilled = False
    name, stack, spills = "", "0", 0
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
        if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = found[1], int(found[2]) + int(found[3])
        if found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            print(f"{name:32} {architecture:6} {found[1]:>9} {spills:>8} {stack:>6} {shared[1] if shared else 0:>7}")
            spilled |= spills > 0
        if "warning" in line:
            print(line)
    return spilled


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
