"""ONNX Runtime as a peer of `benches/encode.rs`.

Usage: ort.py MODEL.onnx INPUT.json THREADS

INPUT.json holds `bulk` (lists of ids), `query` (one list of ids) and `batch` (sequences of one call). For each line on
standard input, `bulk` or `query`, it runs that once and prints the seconds; `vectors` prints the vectors of `bulk`.
Bulk sequences come sorted by length, so that a call is padded as little as possible.
"""

import json
import sys
import time

import numpy
import onnxruntime


def main() -> None:
    path, input_path, threads = sys.argv[1:4]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    with open(input_path) as file:
        work = json.load(file)

    def feed(sequences: list[list[int]]) -> dict:
        longest = max(map(len, sequences))
        ids = numpy.zeros((len(sequences), longest), dtype=numpy.int64)
        mask = numpy.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return {name: ids if name == "input_ids" else mask if name == "attention_mask" else numpy.zeros_like(ids) for name in names}

    size = work["batch"]
    bulk = [feed(work["bulk"][at : at + size]) for at in range(0, len(work["bulk"]), size)]
    query = [feed([work["query"]])]

    def run(calls: list[dict]) -> list:
        return [session.run(None, call) for call in calls]

    print(onnxruntime.__version__, flush=True)
    for line in sys.stdin:
        what = line.strip()
        if what == "vectors":
            vectors = []
            for call, (first, *_) in zip(bulk, run(bulk)):
                if first.ndim == 3:  # token states: the file has no read-out of its own
                    mask = call["attention_mask"][..., None]
                    first = (first * mask).sum(1) / mask.sum(1)
                    first /= numpy.linalg.norm(first, axis=1, keepdims=True)
                vectors += first.tolist()
            print(json.dumps(vectors), flush=True)
            continue
        begin = time.perf_counter()
        run(bulk if what == "bulk" else query)
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
