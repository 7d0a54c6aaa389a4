"""Writes a tiny checkpoint in the layout of the published xrag-7b: make_xrag.py FOLDER.

Two shards of what torch.save writes, made without PyTorch: the projector lies in the second, in bfloat16, beside tensors of an LLM.
"""

import collections
import io
import json
import pathlib
import pickle
import sys
import types
import zipfile

torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
sys.modules.update({"torch": torch, "torch._utils": utils})


def _rebuild_tensor_v2(*_arguments):
    raise NotImplementedError


class BFloat16Storage:
    pass


_rebuild_tensor_v2.__module__, BFloat16Storage.__module__ = "torch._utils", "torch"
utils._rebuild_tensor_v2, torch.BFloat16Storage = _rebuild_tensor_v2, BFloat16Storage


class Tensor:
    """Numbers 1, 2, 4, ... of the powers of two that bfloat16 holds exactly."""

    def __init__(self, *shape):
        self.shape, self.count = shape, 1
        for length in shape:
            self.count *= length
        self.data = b"".join(((127 + place % 3) << 7).to_bytes(2, "little") for place in range(self.count))

    def __reduce__(self):
        strides = (self.shape[1], 1) if len(self.shape) == 2 else (1,)
        return _rebuild_tensor_v2, (Storage(self), 0, self.shape, strides, False, collections.OrderedDict())


class Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class Writer(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, 2)
        self.storages = []

    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        self.storages.append(thing.tensor)
        return "storage", BFloat16Storage, str(len(self.storages) - 1), "cpu", thing.tensor.count


def save(path, tensors):
    pickled = io.BytesIO()
    writer = Writer(pickled)
    writer.dump(collections.OrderedDict(tensors))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        for number, tensor in enumerate(writer.storages):
            archive.writestr(f"archive/data/{number}", tensor.data)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    shards = {
        "pytorch_model-00001-of-00002.bin": {"model.embed_tokens.weight": Tensor(7, 5)},
        "pytorch_model-00002-of-00002.bin": {
            "lm_head.weight": Tensor(7, 5),
            "projector.projector.0.weight": Tensor(576, 384), "projector.projector.0.bias": Tensor(576),
            "projector.projector.2.weight": Tensor(576, 576), "projector.projector.2.bias": Tensor(576)},
    }
    for name, tensors in shards.items():
        save(out / name, tensors.items())
    places = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


main()
