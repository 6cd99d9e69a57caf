#!/usr/bin/env python3
"""Gemma 4 in NumPy, against a reference of tools/make_reference.py: with exact GELU, and with GELU in half precision.

    tessera synth gemma4,layers=7,width=1536,heads=8,kv_heads=2,window=128,format=F32,context=512 model.gguf
    make_reference.py model.gguf reference.json --chunks 1 --tokens 150
    check_gemma4.py model.gguf reference.json
    tessera perplexity model.gguf --reference reference.json --cache-format f32

llama.cpp reads GELU from a table of half-precision numbers. Gemma 4 does not scale its scores, so in a model of random
weights attention is nearly a choice, and rounding errors grow from layer to layer. This program says how much of a divergence
that alone explains: with the table it must nearly vanish, and without it must be what Tessera has. Needs numpy and gguf.
"""
import json
import sys

import gguf
import numpy as np


class Model:
    def __init__(self, path, table):
        reader = gguf.GGUFReader(path)
        self.fields, self.table = reader.fields, table
        self.tensors = {t.name: np.asarray(t.data, np.float32).reshape([int(n) for n in t.shape][::-1]) for t in reader.tensors}
        self.eps = self.key("attention.layer_norm_rms_epsilon")

    def key(self, name, default=None):
        field = self.fields.get("gemma4." + name)
        return field.contents() if field else default

    def norm(self, x, weight=None):
        y = (x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + self.eps)).astype(np.float32)
        return y if weight is None else y * weight

    def gelu(self, x):
        x = x.astype(np.float16).astype(np.float32) if self.table else x
        y = 0.5 * x * (1 + np.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)))
        return (y.astype(np.float16) if self.table else y).astype(np.float32)

    def attention(self, layer, h, positions, written):
        """The layer's attention over `h`; keys and values go to `written` by layer."""
        count, tensor = len(positions), lambda name: self.tensors[f"blk.{layer}.{name}.weight"]
        pattern, shared = self.key("attention.sliding_window_pattern"), self.key("attention.shared_kv_layers", 0)
        windowed, writers = pattern[layer], len(pattern) - shared
        suffix = "_swa" if windowed else ""
        dim, base = self.key("attention.key_length" + suffix), self.key("rope.freq_base" + suffix)
        heads, kv_heads = self.key("attention.head_count"), self.key("attention.head_count_kv")
        divisors = 1 if windowed else self.tensors["rope_freqs.weight"]
        angles = positions[:, None] * base ** (-np.arange(0, dim, 2) / dim)[None] / divisors
        cos, sin = np.cos(angles)[:, None].astype(np.float32), np.sin(angles)[:, None].astype(np.float32)

        def rotate(x):
            a, b = x[..., : dim // 2], x[..., dim // 2 :]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        query = rotate(self.norm((h @ tensor("attn_q").T).reshape(count, heads, dim), tensor("attn_q_norm")))
        if layer < writers:
            raw = (h @ tensor("attn_k").T).reshape(count, kv_heads, dim)
            own = f"blk.{layer}.attn_v.weight" in self.tensors
            value = self.norm((h @ tensor("attn_v").T).reshape(count, kv_heads, dim) if own else raw)
            written[layer] = (rotate(self.norm(raw, tensor("attn_k_norm"))), value)
        key, value = written[max(j for j in range(min(layer + 1, writers)) if pattern[j] == windowed)]
        key, value = (np.repeat(x, heads // kv_heads, 1) for x in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key)
        back = positions[:, None] - positions[None, :]
        hidden = (back < 0) | (back >= self.key("attention.sliding_window") if windowed else False)
        weights = np.exp(np.where(hidden, -np.inf, scores) - np.where(hidden, -np.inf, scores).max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), value)
        return mixed.reshape(count, -1).astype(np.float32) @ tensor("attn_output").T

    def experts(self, layer, x, dense):
        tensor = lambda name: self.tensors[f"blk.{layer}.{name}"]
        judged = self.norm(x) * tensor("ffn_gate_inp.scale") * np.float32(x.shape[1] ** -0.5)
        logits = judged @ tensor("ffn_gate_inp.weight").T
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        chosen = np.argsort(-odds, -1, kind="stable")[:, : self.key("expert_used_count")]
        inputs, out = self.norm(x, tensor("pre_ffw_norm_2.weight")), np.zeros_like(x)
        for token, ids in enumerate(chosen):
            weights = odds[token, ids] / odds[token, ids].sum() * tensor("ffn_down_exps.scale")[ids]
            for expert, weight in zip(ids, weights):
                gate, up = np.split(tensor("ffn_gate_up_exps.weight")[expert] @ inputs[token], 2)
                out[token] += weight * (tensor("ffn_down_exps.weight")[expert] @ (self.gelu(gate) * up))
        return self.norm(dense, tensor("post_ffw_norm_1.weight")) + self.norm(out, tensor("post_ffw_norm_2.weight"))

    def log_probabilities(self, tokens):
        count, layers, hidden = len(tokens), self.key("block_count"), self.key("embedding_length")
        per_layer, top = self.key("embedding_length_per_layer_input", 0), self.tensors
        x = top["token_embd.weight"][tokens] * np.float32(hidden**0.5)
        if per_layer:
            made = (x @ top["per_layer_model_proj.weight"].T * np.float32(hidden**-0.5)).reshape(count, layers, per_layer)
            looked_up = top["per_layer_token_embd.weight"][tokens].reshape(count, layers, per_layer) * np.float32(per_layer**0.5)
            parts = (self.norm(made, top["per_layer_proj_norm.weight"]) + looked_up) * np.float32(0.5**0.5)
        written, positions = {}, np.arange(count)
        for layer in range(layers):
            tensor = lambda name: top[f"blk.{layer}.{name}.weight"]
            y = self.attention(layer, self.norm(x, tensor("attn_norm")), positions, written)
            x = x + self.norm(y, tensor("post_attention_norm"))
            h = self.norm(x, tensor("ffn_norm"))
            y = (self.gelu(h @ tensor("ffn_gate").T) * (h @ tensor("ffn_up").T)) @ tensor("ffn_down").T
            if self.key("expert_count", 0):
                y = self.experts(layer, x, y)
            x = x + self.norm(y, tensor("post_ffw_norm"))
            if per_layer:
                y = (self.gelu(x @ tensor("inp_gate").T) * parts[:, layer]) @ tensor("proj").T
                x = x + self.norm(y, tensor("post_norm"))
            x = (x * tensor("layer_output_scale")[0]).astype(np.float32)
        logits = (self.norm(x, top["output_norm.weight"]) @ top["token_embd.weight"].T).astype(np.float64)
        cap = self.key("final_logit_softcapping")
        logits = cap * np.tanh(logits / cap)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def main():
    path, reference = sys.argv[1:3]
    with open(reference) as f:
        chunk = json.load(f)["chunks"][0]
    for table in (False, True):
        mine = Model(path, table).log_probabilities(np.array(chunk["tokens"]))
        divergences = []
        for row, (ids, listed) in zip(mine, chunk["top"]):
            listed = np.array(listed)
            rest, mine_rest = 1 - np.exp(listed).sum(), 1 - np.exp(row[ids]).sum()
            divergences.append((np.exp(listed) * (listed - row[ids])).sum() + rest * np.log(rest / mine_rest))
        print(f"GELU {'from a table in F16' if table else 'exact'}: mean KLD {np.mean(divergences):.8f}")


main()
