#!/usr/bin/env python3
"""Takes the projector out of a published xRAG checkpoint, as a file that situ.import_bridge_file(..., kind => 'xrag') takes.

Usage: convert_xrag.py CHECKPOINT OUT.safetensors

CHECKPOINT is the folder of a model such as xrag-7b (pytorch_model.bin.index.json and its shards, or one pytorch_model.bin), or a
file that holds the projector among other tensors (ckpt.pth). OUT gets the four tensors of the projector and nothing of the LLM,
whose weights were frozen: register the LLM itself. Needs nothing but Python; of a pickle only tensors are read, nothing in it is
run, and of a shard only the tensors that are wanted. A checkpoint that is safetensors already needs no conversion:
situ.import_bridge reads the projector out of it.
"""

import json
import pathlib
import sys
import zipfile

from convert_ance import Reader, Tensor, write_safetensors

WANTED = [f"projector.projector.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]


class Later:
    """A tensor that has not been read."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def read(self):
        (kind, width, load), *rest = self.arguments
        return Tensor((kind, width, load()), *rest)


class LazyReader(Reader):
    """Leaves the numbers of tensors in the archive until they are asked for."""

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Later
        return super().find_class(module, name)

    def persistent_load(self, identity):
        _, (kind, width), key, _place, _count = identity
        return kind, width, lambda: self.archive.read(f"{self.folder}/data/{key}")


def named(name):
    """The published name of a projector's tensor; None for any other."""
    return next((wanted for wanted in WANTED if name == wanted or name.endswith("." + wanted)), None)


def projector(path):
    """The projector's tensors in one file."""
    if not zipfile.is_zipfile(path):
        raise SystemExit(f"{path} is not in the format of PyTorch 1.6 and later: load and save it with that once")
    with zipfile.ZipFile(path) as archive:
        place = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if place is None:
            raise SystemExit(f"{path} holds no checkpoint")
        with archive.open(place) as file:
            found = LazyReader(file, archive, place.rsplit("/", 1)[0]).load()
        found = found.get("state_dict", found)
        return {named(name): tensor.read() for name, tensor in found.items() if named(name)}


def files(checkpoint):
    """The files that the projector lies in."""
    index = checkpoint / "pytorch_model.bin.index.json"
    if checkpoint.is_file():
        return [checkpoint]
    if index.is_file():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {place for name, place in places.items() if named(name)}
        if any("/" in name or name.startswith(".") for name in names):
            raise SystemExit(f"{index} names a file outside its folder")
        return [checkpoint / name for name in sorted(names)]
    return [checkpoint / "pytorch_model.bin"]


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    checkpoint, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    tensors = {}
    for path in files(checkpoint):
        tensors |= projector(path)
    for name in WANTED:
        if name not in tensors:
            raise SystemExit(f"the checkpoint has no tensor {name}: it holds no projector of two layers")
    write_safetensors(out, {name: tensors[name] for name in WANTED})
    inputs, outputs = tensors[WANTED[0]].shape[1], tensors[WANTED[2]].shape[0]
    print(f"{out}: from {inputs} to {outputs} numbers")


if __name__ == "__main__":
    main()
