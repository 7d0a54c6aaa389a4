"""The peer of gpu.rs: what sentence-transformers does in bf16 with SDPA, on a model of the given shape with random weights.

Usage: gpu_peer.py SHAPE, a JSON object. The last line printed is a JSON object with tokens_per_second, or says why not.
Ids start in host memory and vectors end there, as in the other bench; all sequences have the same length, so nothing is
padded. The batch size is the best of several. Tokenisation is not counted on either side.
"""

import json
import statistics
import sys
import time


def build(shape: dict):
    """The model with random weights, and whether its last token is read."""
    common = {
        "vocab_size": shape["vocabulary"],
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["inner"],
        "max_position_embeddings": shape["positions"],
    }
    if shape["decoder"]:
        from transformers import Qwen3Config, Qwen3Model

        key_heads, size = shape["decoder"]
        config = Qwen3Config(num_key_value_heads=key_heads, head_dim=size, rope_theta=1e6, use_cache=False, **common)
        return Qwen3Model, config, True
    if shape["first_place"]:
        from transformers import XLMRobertaConfig, XLMRobertaModel

        return XLMRobertaModel, XLMRobertaConfig(type_vocab_size=1, pad_token_id=1, **common), False
    from transformers import BertConfig, BertModel

    return BertModel, BertConfig(**common), False


def main(shape: dict) -> None:
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"{error}")
        return
    if not torch.cuda.is_available():
        print("torch finds no card")
        return
    model_class, config, last = build(shape)
    config._attn_implementation = "sdpa"
    torch.manual_seed(1)
    model = model_class(config).to("cuda", torch.bfloat16).eval()
    length = shape["length"]
    best = 0.0

    def encode(ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        ids, mask = ids.to("cuda", non_blocking=True), mask.to("cuda", non_blocking=True)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        if last:
            vectors = states[:, -1]
        else:
            wide = mask.unsqueeze(-1).to(states.dtype)
            vectors = (states * wide).sum(1) / wide.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(vectors, dim=1).float().cpu()

    with torch.inference_mode():
        for batch in (8, 32, 128, 256):
            if batch * length > 131072 and batch > 8:
                continue
            ids = torch.randint(5, shape["vocabulary"], (batch, length))
            mask = torch.ones_like(ids)
            try:
                for _ in range(3):
                    encode(ids, mask)
                times = []
                begin = time.perf_counter()
                while len(times) < 5 or time.perf_counter() - begin < 2:
                    start = time.perf_counter()
                    encode(ids, mask)
                    times.append(time.perf_counter() - start)
            except torch.cuda.OutOfMemoryError:
                continue
            best = max(best, batch * length / statistics.median(times))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"tokens_per_second": best, **versions}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
