"""Unpacks a wheel into a folder, keeping the execute bits (python -m zipfile drops them).

Usage: unpack_wheel.py WHEEL FOLDER. Each top-level entry is unpacked beside its place and renamed into it, so an
interrupted run leaves no half of a package behind.
"""

import os
import pathlib
import shutil
import sys
import tempfile
import zipfile


def main(wheel: str, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix=".unpack-"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                path = archive.extract(info, scratch)
                mode = (info.external_attr >> 16) & 0o777
                if mode:
                    os.chmod(path, mode | 0o200)
        for entry in scratch.iterdir():
            place = pathlib.Path(folder, entry.name)
            if place.is_dir():
                shutil.rmtree(place)
            entry.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
