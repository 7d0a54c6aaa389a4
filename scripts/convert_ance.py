#!/usr/bin/env python3
"""Converts a published ANCE or ANCE-PRF checkpoint to a model directory that situ.register_model takes.

Usage: convert_ance.py CHECKPOINT OUT [VOCABULARY] [--reads K --of ENCODER]

CHECKPOINT holds pytorch_model.bin and config.json, and vocab.json and merges.txt unless VOCABULARY (roberta-base's folder)
has them. OUT gets config.json, model.safetensors and a tokenizer.json that lower-cases, because these models were trained
on lower-cased text. An ANCE-PRF checkpoint is told how many passages it reads (the published one: 3) and of which encoder:
ENCODER is the converted directory of that ANCE, or its fingerprint as situ.models shows it. Both go into feedback.json. Needs nothing but Python; of the pickle in pytorch_model.bin only tensors are read, nothing in it is run.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import pickle
import struct
import zipfile

#: Storage classes of PyTorch: safetensors' name, and bytes of a number.
KINDS = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2), "LongStorage": ("I64", 8)}


class Tensor:
    """A contiguous tensor: its bytes as they lie in the archive."""

    def __init__(self, storage, offset, shape, strides, *_rest):
        kind, width, data = storage
        expected, count = [], 1
        for length in reversed(shape):
            expected.insert(0, count)
            count *= length
        if any(length > 1 and a != b for length, a, b in zip(shape, strides, expected)):
            raise SystemExit("a tensor that is not contiguous")
        self.kind, self.shape = kind, list(shape)
        self.data = data[offset * width:(offset + count) * width]
        if len(self.data) != count * width:
            raise SystemExit("a tensor that is cut short")


class Reader(pickle.Unpickler):
    """Reads tensors and plain containers; everything else that a pickle could make is refused."""

    def __init__(self, file, archive, folder):
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_rest: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in KINDS:
            return KINDS[name]
        raise SystemExit(f"the checkpoint holds a {module}.{name}, which is no tensor")

    def persistent_load(self, identity):
        _, (kind, width), key, _place, _count = identity
        return kind, width, self.archive.read(f"{self.folder}/data/{key}")


def tensors(path):
    """Name and tensor of everything in a checkpoint."""
    if not zipfile.is_zipfile(path):
        raise SystemExit(f"{path} is not in the format of PyTorch 1.6 and later: load and save it with that once")
    with zipfile.ZipFile(path) as archive:
        place = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(place) as file:
            found = Reader(file, archive, place.rsplit("/", 1)[0]).load()
    return found.get("state_dict", found)


def renamed(name):
    """The name in the model directory; None for what no forward pass reads."""
    for prefix in ("module.", "ance_encoder."):
        name = name.removeprefix(prefix)
    kept = name.startswith(("roberta.embeddings.", "roberta.encoder.", "embeddingHead.", "norm."))
    return name if kept and not name.endswith("position_ids") else None


def write_safetensors(path, named):
    header, offset = {}, 0
    for name, tensor in named.items():
        header[name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [offset, offset + len(tensor.data)]}
        offset += len(tensor.data)
    text = json.dumps(header).encode()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for tensor in named.values():
            out.write(tensor.data)


def tokenizer(vocabulary, merges):
    """RoBERTa's byte-level tokenizer behind a lower-casing."""
    special = [name for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if name in vocabulary]
    pairs = [line.split(" ") for line in merges.splitlines() if line and not line.startswith("#version")]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": vocabulary[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for name in special],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", vocabulary["</s>"]], "cls": ["<s>", vocabulary["<s>"]],
                           "trim_offsets": True, "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": pairs},
    }


def fingerprint(folder):
    """The fingerprint that situ gives a directory that this script has written: SHA-256 over name, length and content."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        digest.update(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<Q", len(content)))
        digest.update(content)
    return digest.hexdigest()


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("vocabulary", type=pathlib.Path, nargs="?")
    parser.add_argument("--reads", type=int, choices=range(1, 21), metavar="K")
    parser.add_argument("--of", metavar="ENCODER")
    given = parser.parse_args()
    if (given.reads is None) != (given.of is None):
        parser.error("--reads and --of belong together")
    return given


def main():
    given = arguments()
    checkpoint, out, words = given.checkpoint, given.out, given.vocabulary or given.checkpoint
    named = {renamed(name): tensor for name, tensor in tensors(checkpoint / "pytorch_model.bin").items()}
    named.pop(None, None)
    for name in ("embeddingHead.weight", "norm.weight", "roberta.embeddings.word_embeddings.weight"):
        if name not in named:
            raise SystemExit(f"the checkpoint has no tensor {name}: it is not of ANCE's kind")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "roberta"
    vocabulary = json.loads((words / "vocab.json").read_text(encoding="utf-8"))
    merges = (words / "merges.txt").read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (out / "tokenizer.json").write_text(json.dumps(tokenizer(vocabulary, merges), ensure_ascii=False), encoding="utf-8")
    write_safetensors(out / "model.safetensors", named)
    if given.of is not None:
        encoder = fingerprint(pathlib.Path(given.of)) if pathlib.Path(given.of).is_dir() else given.of
        reads = {"encoder": encoder, "passages": given.reads}
        (out / "feedback.json").write_text(json.dumps(reads), encoding="utf-8")
    print(f"{out}: {len(named)} tensors")


if __name__ == "__main__":
    main()
