#!/usr/bin/env python3
"""Writes tests/fixtures/gemma3: a tiny random Gemma 3 model and the logits that llama.cpp gives for four prompts.

    pip install numpy gguf==0.19.0 llama-cpp-python==0.3.36 safetensors
    make_gemma3_fixture.py OUT_FOLDER

Seven layers, so that one (the sixth) attends to all tokens and six have a window of 16, which the longer prompts
cross. Keys and values in float32, no flash attention. llama.cpp reads its GELU from a table in half precision, so an
engine with an exact one differs by up to about 2e-2 (measured on Gemma 4 fixtures: 2.6e-3 to 7e-3).
"""
import json
import os
import sys

import gguf
import llama_cpp as ll
import numpy as np
from safetensors.numpy import save_file

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCABULARY, WINDOW = 7, 64, 4, 2, 32, 64, 384, 16
PROMPTS = [1, 7, 33, 130]
SEED = 20261121


def write_model(path):
    rng = np.random.default_rng(SEED)
    w = gguf.GGUFWriter(path, "gemma3")
    w.add_name("tiny random gemma3")
    w.add_context_length(2048)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FEED_FORWARD)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_layer_norm_rms_eps(1e-3)
    w.add_rope_freq_base(1e6)
    w.add_sliding_window(WINDOW)
    w.add_vocab_size(VOCABULARY)
    w.add_tokenizer_model("no_vocab")
    w.add_file_type(0)

    def matrix(rows, depth):
        return (rng.standard_normal((rows, depth)) / np.sqrt(depth)).astype(np.float32)

    def norm(n):
        return (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    w.add_tensor("token_embd.weight", matrix(VOCABULARY, HIDDEN))
    w.add_tensor("output_norm.weight", norm(HIDDEN))
    for i in range(LAYERS):
        p = f"blk.{i}."
        w.add_tensor(p + "attn_norm.weight", norm(HIDDEN))
        w.add_tensor(p + "attn_q.weight", 2 * matrix(HEADS * HEAD_DIM, HIDDEN))
        w.add_tensor(p + "attn_k.weight", 2 * matrix(KV_HEADS * HEAD_DIM, HIDDEN))
        w.add_tensor(p + "attn_v.weight", matrix(KV_HEADS * HEAD_DIM, HIDDEN))
        w.add_tensor(p + "attn_output.weight", matrix(HIDDEN, HEADS * HEAD_DIM))
        w.add_tensor(p + "attn_q_norm.weight", norm(HEAD_DIM))
        w.add_tensor(p + "attn_k_norm.weight", norm(HEAD_DIM))
        w.add_tensor(p + "post_attention_norm.weight", norm(HIDDEN))
        w.add_tensor(p + "ffn_norm.weight", norm(HIDDEN))
        w.add_tensor(p + "ffn_gate.weight", matrix(FEED_FORWARD, HIDDEN))
        w.add_tensor(p + "ffn_up.weight", matrix(FEED_FORWARD, HIDDEN))
        w.add_tensor(p + "ffn_down.weight", matrix(HIDDEN, FEED_FORWARD))
        w.add_tensor(p + "post_ffw_norm.weight", norm(HIDDEN))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def reference_logits(path):
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    c = ll.llama_context_default_params()
    c.n_ctx, c.n_batch, c.n_ubatch, c.n_threads, c.n_threads_batch = 256, 256, 256, 1, 1
    c.type_k = c.type_v = 0
    c.flash_attn_type = 0
    out = {}
    for n in PROMPTS:
        context = ll.llama_init_from_model(model, c)
        tokens = np.random.default_rng(n).integers(0, VOCABULARY, n).astype(np.int32)
        batch = ll.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, t in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(t), i, 1, 1
            batch.seq_id[i][0] = 0
        assert ll.llama_decode(context, batch) == 0
        rows = [np.ctypeslib.as_array(ll.llama_get_logits_ith(context, i), (VOCABULARY,)).copy() for i in range(n)]
        out[f"tokens.{n}"], out[f"logits.{n}"] = tokens, np.stack(rows).astype(np.float32)
        ll.llama_batch_free(batch)
        ll.llama_free(context)
    return out


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.gguf")
    write_model(path)
    logits = reference_logits(path)
    save_file(logits, os.path.join(folder, "logits.safetensors"))
    about = {"architecture": "gemma3", "seed": SEED, "logits": "llama.cpp through llama-cpp-python 0.3.36", "window": WINDOW}
    with open(os.path.join(folder, "manifest.json"), "w") as f:
        json.dump(about, f, indent=1)
    print({k: float(v.std()) for k, v in logits.items() if k.startswith("logits")})


main()
