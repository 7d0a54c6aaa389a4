"""Writes a BERT encoder of a Hugging Face directory (safetensors, f32) as two ONNX files for the peers.

Usage: export.py MODEL_DIRECTORY OUTPUT_DIRECTORY

`fused.onnx` uses ONNX Runtime's own fused operators (EmbedLayerNormalization, Attention, SkipLayerNormalization,
BiasGelu): the fastest graph that it has for this family. `plain.onnx` uses standard operators alone, for engines that
lack those. Both take `input_ids` and `attention_mask` (batch, length) and give the mean over the unmasked tokens with
unit length (batch, hidden): the same work as ours.
"""

import json
import pathlib
import struct
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


def read(path: pathlib.Path) -> dict[str, numpy.ndarray]:
    """Tensors of a safetensors file, f32 only."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            values = numpy.frombuffer(data[8 + size + begin : 8 + size + end], dtype="<f4")
            tensors[name.removeprefix("bert.")] = values.reshape(entry["shape"])
    return tensors


class Graph:
    def __init__(self, config: dict, tensors: dict[str, numpy.ndarray]) -> None:
        self.config, self.tensors = config, tensors
        self.nodes, self.constants, self.count = [], {}, 0
        self.hidden, self.heads = config["hidden_size"], config["num_attention_heads"]

    def constant(self, name: str, values: numpy.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(numpy.ascontiguousarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), numpy.array(values, dtype=numpy.int64))

    def tensor(self, name: str) -> str:
        return self.constant(name, self.tensors[name])

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes) -> str:
        self.count += 1
        names = [f"{kind}_{self.count}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names[0]

    def linear(self, x: str, name: str, bias: bool = True) -> str:
        weight = self.constant(name + ".transposed", self.tensors[name + ".weight"].T)
        product = self.node("MatMul", x, weight)
        return self.node("Add", product, self.tensor(name + ".bias")) if bias else product

    def norm_tensors(self, place: str) -> list[str]:
        return [self.tensor(place + ".LayerNorm.weight"), self.tensor(place + ".LayerNorm.bias")]

    def read_out(self, states: str) -> None:
        """Mean over the unmasked tokens, unit length."""
        mask = self.node("Cast", "attention_mask", to=TensorProto.FLOAT)
        mask = self.node("Unsqueeze", mask, self.ints(2))
        total = self.node("ReduceSum", self.node("Mul", states, mask), self.ints(1), keepdims=0)
        mean = self.node("Div", total, self.node("ReduceSum", mask, self.ints(1), keepdims=0))
        length = self.node("ReduceL2", mean, axes=[1], keepdims=1)
        self.nodes.append(helper.make_node("Div", [mean, length], ["embedding"], name="embedding"))

    def save(self, path: pathlib.Path, contrib: bool) -> None:
        ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in ("input_ids", "attention_mask")]
        out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", self.hidden])
        graph = helper.make_graph(self.nodes, "bert", ids, [out], list(self.constants.values()))
        versions = [helper.make_opsetid("", 17)] + ([helper.make_opsetid("com.microsoft", 1)] if contrib else [])
        onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=8), path)


def qkv(graph: Graph, layer: str, part: str) -> numpy.ndarray:
    names = [f"{layer}.attention.self.{which}.{part}" for which in ("query", "key", "value")]
    return numpy.concatenate([graph.tensors[name] for name in names])


def fused(config: dict, tensors: dict) -> Graph:
    graph, epsilon, domain = Graph(config, tensors), config["layer_norm_eps"], {"domain": "com.microsoft"}
    ids = graph.node("Cast", "input_ids", to=TensorProto.INT32)
    types = graph.node("Mul", ids, graph.constant("zero", numpy.array(0, dtype=numpy.int32)))
    lengths = graph.node("Cast", graph.node("ReduceSum", "attention_mask", graph.ints(1), keepdims=0), to=TensorProto.INT32)
    tables = [graph.tensor(f"embeddings.{t}.weight") for t in ("word_embeddings", "position_embeddings", "token_type_embeddings")]
    x = graph.node("EmbedLayerNormalization", ids, types, *tables, *graph.norm_tensors("embeddings"), outputs=2, epsilon=epsilon, **domain)
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        weight = graph.constant(layer + ".qkv.weight", qkv(graph, layer, "weight").T)
        bias = graph.constant(layer + ".qkv.bias", qkv(graph, layer, "bias"))
        context = graph.node("Attention", x, weight, bias, lengths, num_heads=graph.heads, **domain)
        out = graph.linear(context, layer + ".attention.output.dense", bias=False)
        bias = graph.tensor(layer + ".attention.output.dense.bias")
        x = graph.node("SkipLayerNormalization", out, x, *graph.norm_tensors(layer + ".attention.output"), bias, epsilon=epsilon, **domain)
        up = graph.linear(x, layer + ".intermediate.dense", bias=False)
        up = graph.node("BiasGelu", up, graph.tensor(layer + ".intermediate.dense.bias"), **domain)
        down = graph.linear(up, layer + ".output.dense", bias=False)
        x = graph.node("SkipLayerNormalization", down, x, *graph.norm_tensors(layer + ".output"), graph.tensor(layer + ".output.dense.bias"), epsilon=epsilon, **domain)
    graph.read_out(x)
    return graph


def plain(config: dict, tensors: dict) -> Graph:
    graph = Graph(config, tensors)
    width = graph.hidden // graph.heads

    def norm(x: str, place: str) -> str:
        return graph.node("LayerNormalization", x, *graph.norm_tensors(place), axis=-1, epsilon=config["layer_norm_eps"])

    def split(x: str, order: list[int]) -> str:
        shape = graph.constant("heads", numpy.array([0, 0, graph.heads, width], dtype=numpy.int64))
        return graph.node("Transpose", graph.node("Reshape", x, shape), perm=order)

    # Token type 0 everywhere: its embedding joins the positions'.
    positions = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
    length = graph.node("Slice", graph.node("Shape", "input_ids"), graph.ints(1), graph.ints(2))
    rows = graph.node("Slice", graph.constant("positions", positions), graph.ints(0), length, graph.ints(0))
    x = graph.node("Add", graph.node("Gather", graph.tensor("embeddings.word_embeddings.weight"), "input_ids"), rows)
    x = norm(x, "embeddings")
    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    mask = graph.node("Sub", mask, graph.constant("one", numpy.array(1, dtype=numpy.float32)))
    mask = graph.node("Mul", mask, graph.constant("much", numpy.array(1e9, dtype=numpy.float32)))
    mask = graph.node("Unsqueeze", mask, graph.ints(1, 2))
    scale = graph.constant("scale", numpy.array(width**-0.5, dtype=numpy.float32))
    half, one, root = (graph.constant(n, numpy.array(v, dtype=numpy.float32)) for n, v in (("half", 0.5), ("gelu_one", 1), ("root", 2**-0.5)))
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        query = split(graph.linear(x, layer + ".attention.self.query"), [0, 2, 1, 3])
        key = split(graph.linear(x, layer + ".attention.self.key"), [0, 2, 3, 1])
        value = split(graph.linear(x, layer + ".attention.self.value"), [0, 2, 1, 3])
        scores = graph.node("Add", graph.node("Mul", graph.node("MatMul", query, key), scale), mask)
        context = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        context = graph.node("Transpose", context, perm=[0, 2, 1, 3])
        shape = graph.constant("joined", numpy.array([0, 0, graph.hidden], dtype=numpy.int64))
        context = graph.linear(graph.node("Reshape", context, shape), layer + ".attention.output.dense")
        x = norm(graph.node("Add", context, x), layer + ".attention.output")
        up = graph.linear(x, layer + ".intermediate.dense")
        erf = graph.node("Add", graph.node("Erf", graph.node("Mul", up, root)), one)
        up = graph.node("Mul", graph.node("Mul", up, erf), half)
        x = norm(graph.node("Add", graph.linear(up, layer + ".output.dense"), x), layer + ".output")
    graph.read_out(x)
    return graph


def main() -> None:
    source, target = map(pathlib.Path, sys.argv[1:3])
    config = json.loads((source / "config.json").read_text())
    tensors = read(source / "model.safetensors")
    target.mkdir(parents=True, exist_ok=True)
    fused(config, tensors).save(target / "fused.onnx", contrib=True)
    plain(config, tensors).save(target / "plain.onnx", contrib=False)


if __name__ == "__main__":
    main()
