#!/usr/bin/env python3
"""Compares the encoders' errors with ggml's and with those of the `gguf` package (0.19.0), on seeded weights.

    python3 tools/compare_encoders.py --libggml PATH/libggml-base.so

ggml is called without an importance matrix (llama-cpp-python 0.3.36 ships the library). Prints a table of root mean
squared errors, ours too (from the test that measures them, by cargo), and the lines of constants for
crates/formats/tests/it/encode.rs.
"""

import argparse
import ctypes
import re
import subprocess

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize
from make_dequant_fixtures import random_bytes

NAMES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K"]
LEN = 65536


def inputs():
    """Sums of four 16-bit integers, nearly normal and exact in f32; then with outliers; then off centre."""
    for seed, name in enumerate(["normal", "outliers", "shifted"], 1):
        sums = random_bytes(seed, 8 * LEN).view("<i2").reshape(-1, 4).astype(np.int32).sum(1)
        if name == "outliers":
            sums[::64] *= 8
        if name == "shifted":
            sums += 1 << 15
        yield name, (sums.astype(np.float32) * np.float32(2.0**-20)).reshape(-1, 256)


def rmse(a, b):
    return float(np.sqrt(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))


def by_ggml(lib, kind, weights):
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    out = np.empty((weights.shape[0], 256 // block_len * block_bytes), np.uint8)
    lib.ggml_quantize_chunk(int(kind), weights.ctypes.data, out.ctypes.data, 0, weights.shape[0], 256, None)
    return rmse(dequantize(out, kind), weights)


def ours():
    test = ["cargo", "test", "-q", "-p", "tessera-formats", "--test", "it", "errors_beside_ggml", "--", "--nocapture"]
    out = subprocess.run(test, capture_output=True, text=True).stdout
    return {(a, b): float(c) for a, b, c in re.findall(r"rmse (\S+) (\S+) (\S+)", out)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libggml", required=True)
    lib = ctypes.CDLL(parser.parse_args().libggml)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    mine, lines = ours(), []
    print("format  weights        ours       ggml  ours/ggml       gguf")
    for name in NAMES:
        kind = GGMLQuantizationType[name]
        for label, weights in inputs():
            theirs = by_ggml(lib, kind, weights)
            try:
                package = rmse(dequantize(quantize(weights, kind), kind), weights)
            except NotImplementedError:
                package = float("nan")
            here = mine.get((name, label), float("nan"))
            print(f"{name:7} {label:9} {here:.4e} {theirs:.4e} {here / theirs:10.4f} {package:.4e}")
            lines.append(f'    (DType::{name}, "{label}", {np.nanmin([theirs, package]):.6e}),')
    print("\n".join(lines))


if __name__ == "__main__":
    main()
