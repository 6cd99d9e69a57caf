#!/usr/bin/env python3
"""A reference file for `tessera perplexity --reference`, from llama.cpp (through the PyPI package llama-cpp-python).

    pip install llama-cpp-python numpy
    tessera synth qwen3moe,layers=4,width=1024,format=F32,context=512 model.gguf
    make_reference.py model.gguf reference.json [--tokens 300] [--chunks 2] [--top 16] [--threads 2]
    tessera perplexity model.gguf --reference reference.json --cache-format f32

Tokens are synthetic (fixed ids; the first is BOS where the model wants one). llama.cpp runs with keys and values in F32 and
without flash attention, so that weights in F32 leave only its GELU, which it reads from a table in F16.
"""
import argparse
import ctypes
import json

import llama_cpp as ll
import numpy as np


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("out")
    p.add_argument("--tokens", type=int, default=300)
    p.add_argument("--chunks", type=int, default=2)
    p.add_argument("--top", type=int, default=16)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()

    quiet = ll.llama_log_callback(lambda level, text, data: print(ctypes.string_at(text).decode(), end="") if level == 4 else None)
    ll.llama_log_set(quiet, None)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(a.model.encode(), ll.llama_model_default_params())
    if not model:
        raise SystemExit(f"cannot load {a.model}")
    vocab = ll.llama_model_get_vocab(model)
    n_vocab = ll.llama_vocab_n_tokens(vocab)
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = a.tokens + 8, a.tokens + 8, 64
    params.n_threads = params.n_threads_batch = a.threads
    params.type_k = params.type_v = ll.GGML_TYPE_F32
    params.flash_attn_type = 0
    context = ll.llama_init_from_model(model, params)
    batch = ll.llama_batch_init(a.tokens, 0, 1)

    chunks = []
    for chunk in range(a.chunks):
        tokens = [260 + (chunk * 104729 + i * 7919 + (i * i) % 1009) % (n_vocab - 260) for i in range(a.tokens)]
        if ll.llama_vocab_get_add_bos(vocab):
            tokens[0] = ll.llama_vocab_bos(vocab)
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        if ll.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        top = []
        for i in range(len(tokens) - 1):
            logits = np.ctypeslib.as_array(ll.llama_get_logits_ith(context, i), shape=(n_vocab,)).astype(np.float64)
            logits -= logits.max()
            logits -= np.log(np.exp(logits).sum())
            ids = np.argsort(-logits)[: a.top]
            top.append([[int(t) for t in ids], [float(logits[t]) for t in ids]])
        chunks.append({"tokens": tokens, "first_scored": 0, "top": top})
    with open(a.out, "w") as f:
        json.dump({"n_ctx": a.tokens, "n_vocab": n_vocab, "chunks": chunks}, f)


main()
