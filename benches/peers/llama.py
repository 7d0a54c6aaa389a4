"""llama.cpp as a peer of `benches/llm.rs`: its own library, called as its own bench calls it.

Usage: llama.py MODEL THREADS PROMPT-TOKENS ANSWER-TOKENS

For every line on standard input it reads a prompt and makes an answer, and prints {"prefill": s, "decode": s}: seconds of one
decode call over the prompt, and of a loop of decode calls of one token each. Nothing is sampled and no text is made in the
loop, as in llama-bench; what is left of Python is one foreign call a token, some microseconds.
"""

import ctypes
import json
import sys
import time

import llama_cpp as llama


def context(model, threads: int):
    """A context with flash attention, that reads a prompt in one piece."""
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 2048, 512, 512
    params.n_threads = params.n_threads_batch = threads
    if hasattr(params, "flash_attn_type"):
        params.flash_attn_type = 1
    else:
        params.flash_attn = True
    return llama.llama_init_from_model(model, params)


def main() -> None:
    path, threads, prompt, answer = sys.argv[1], *map(int, sys.argv[2:5])
    # Of what it says while it loads, nothing is wanted.
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    running = context(model, threads) if model else None
    if not running:
        sys.exit(f"llama.cpp cannot load {path}")
    vocabulary = llama.llama_model_get_vocab(model)

    def decode(tokens, count: int) -> None:
        if llama.llama_decode(running, llama.llama_batch_get_one(tokens, count)):
            sys.exit("llama_decode failed")
        llama.llama_synchronize(running)

    print(json.dumps({"ready": True, "system": llama.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        text = line.strip().encode()
        ids = (llama.llama_token * (len(text) + 8))()
        count = llama.llama_tokenize(vocabulary, text, len(text), ids, len(ids), True, False)
        if count < prompt:
            sys.exit(f"the prompt has {count} tokens, not {prompt}")
        llama.llama_memory_clear(llama.llama_get_memory(running), True)
        begin = time.perf_counter()
        decode(ids, prompt)
        prefill = time.perf_counter() - begin
        one = (llama.llama_token * 1)(ids[prompt - 1])
        begin = time.perf_counter()
        for _ in range(answer):
            decode(one, 1)
        taken = time.perf_counter() - begin
        print(json.dumps({"prefill": prefill, "decode": taken, "answered": answer}), flush=True)


if __name__ == "__main__":
    main()
