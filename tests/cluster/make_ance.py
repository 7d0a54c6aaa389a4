"""Writes a tiny random checkpoint in the layout of the published ANCE: make_ance.py FOLDER [SEED].

The archive is what torch.save writes, made without PyTorch: stand-ins with its names are pickled.
"""

import collections
import io
import json
import pathlib
import pickle
import random
import struct
import sys
import types
import zipfile

torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
sys.modules.update({"torch": torch, "torch._utils": utils})


def _rebuild_tensor_v2(*_arguments):
    raise NotImplementedError


class FloatStorage:
    pass


_rebuild_tensor_v2.__module__, FloatStorage.__module__ = "torch._utils", "torch"
utils._rebuild_tensor_v2, torch.FloatStorage = _rebuild_tensor_v2, FloatStorage
HIDDEN, INNER, POSITIONS = 24, 40, 66
DRAWN = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 5)


class Storage:
    def __init__(self, count, around):
        self.count = count
        self.data = b"".join(struct.pack("<f", around + DRAWN.uniform(-0.5, 0.5)) for _ in range(count))


class Tensor:
    def __init__(self, shape, around):
        self.shape = tuple(shape)
        count = 1
        for length in shape:
            count *= length
        self.storage = Storage(count, around)

    def __reduce__(self):
        strides, step = [], 1
        for length in reversed(self.shape):
            strides.insert(0, step)
            step *= length
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, tuple(strides), False, collections.OrderedDict())


class Writer(pickle.Pickler):
    storages = []

    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        self.storages.append(thing)
        return "storage", FloatStorage, str(len(self.storages) - 1), "cpu", thing.count


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)] + ["\u0120"]
    words = ["<s>", "<pad>", "</s>", "<unk>"] + letters + ["re", "red", "\u0120red", "<mask>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    state = collections.OrderedDict()

    def pair(name, outputs, inputs=None):
        around = 1.0 if name.endswith(("LayerNorm", "norm")) else 0.0
        state[f"{name}.weight"] = Tensor([outputs] if inputs is None else [outputs, inputs], around)
        state[f"{name}.bias"] = Tensor([outputs], 0.0)

    for table, rows in (("word_embeddings", len(words)), ("position_embeddings", POSITIONS), ("token_type_embeddings", 1)):
        state[f"roberta.embeddings.{table}.weight"] = Tensor([rows, HIDDEN], 0.0)
    pair("roberta.embeddings.LayerNorm", HIDDEN)
    for layer in range(2):
        base = f"roberta.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            pair(f"{base}.attention.self.{part}", HIDDEN, HIDDEN)
        pair(f"{base}.attention.output.dense", HIDDEN, HIDDEN)
        pair(f"{base}.attention.output.LayerNorm", HIDDEN)
        pair(f"{base}.intermediate.dense", INNER, HIDDEN)
        pair(f"{base}.output.dense", HIDDEN, INNER)
        pair(f"{base}.output.LayerNorm", HIDDEN)
    pair("embeddingHead", HIDDEN, HIDDEN)
    pair("norm", HIDDEN)
    # What the published file has besides: a classifier that no vector comes from.
    pair("classifier.dense", HIDDEN, HIDDEN)
    pickled = io.BytesIO()
    Writer(pickled, 2).dump(state)
    with zipfile.ZipFile(out / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        for number, storage in enumerate(Writer.storages):
            archive.writestr(f"archive/data/{number}", storage.data)
    (out / "config.json").write_text(json.dumps({
        "model_type": "roberta", "hidden_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": INNER, "vocab_size": len(words), "max_position_embeddings": POSITIONS, "type_vocab_size": 1,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}))
    (out / "vocab.json").write_text(json.dumps(vocabulary))
    (out / "merges.txt").write_text("#version: 0.2\nr e\nre d\n\u0120 red\n")


main()
