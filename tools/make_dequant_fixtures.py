#!/usr/bin/env python3
"""Writes crates/formats/tests/data/dequant.bin: what each block format decodes to, by the `gguf` package (0.19.0).

    python3 tools/make_dequant_fixtures.py --libggml PATH/libggml-base.so

Q1_0 has no numpy code there; ggml's own `dequantize_row_q1_0` is called (llama-cpp-python ships the library). The MLX
formats are not ggml's; their formula is here.

The blocks are random bits, so scales take every value that f16 has: subnormal, infinite and NaN ones too. Each format
has a few blocks with their values written out, and many that both sides make from a seed, with a checksum.

File, little-endian: u32 count of formats; for each: u8 name length, name, u32 blocks, their bytes, their f32 values,
u32 more blocks, u64 seed of these, u64 checksum of their values.
"""

import argparse
import ctypes
import struct
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

OUT = Path(__file__).parent.parent / "crates/formats/tests/data/dequant.bin"
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MLX = [(bits, group) for bits in (4, 8) for group in (32, 64, 128)]


def random_bytes(seed, n):
    """splitmix64, counted from `seed`."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, -(-n // 8) + 1, dtype=np.uint64) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z.view(np.uint8)[:n]


def checksum(values):
    """Sum of each value's bits times an odd number of its place; all NaNs count as one."""
    bits = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32)).astype(np.uint64)
    with np.errstate(over="ignore"):
        places = (np.arange(bits.size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * GOLDEN
        return int((bits * places).sum(dtype=np.uint64))


def q1_0(libggml):
    function = ctypes.CDLL(libggml).dequantize_row_q1_0
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]

    def decode(blocks):
        out = np.empty(blocks.shape[0] * 128, np.float32)
        function(np.ascontiguousarray(blocks).ctypes.data, out.ctypes.data, out.size)
        return out

    return decode


def mlx(bits):
    def decode(blocks):
        head = np.ascontiguousarray(blocks[:, :8]).view(np.float32)
        codes = blocks[:, 8:]
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(blocks.shape[0], -1)
        return head[:, :1] * codes.astype(np.float32) + head[:, 1:]

    return decode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libggml", required=True, help="path of libggml-base.so")
    formats = {}
    for kind, (block_len, block_bytes) in GGML_QUANT_SIZES.items():
        if kind.name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"):
            formats[kind.name] = (block_bytes, lambda b, kind=kind: dequantize(b, kind))
    formats["Q1_0"] = (GGML_QUANT_SIZES[GGMLQuantizationType.Q1_0][1], q1_0(parser.parse_args().libggml))
    for bits, group in MLX:
        formats[f"MLX{bits}_G{group}"] = (8 + group * bits // 8, mlx(bits))

    out = [struct.pack("<I", len(formats))]
    with np.errstate(all="ignore"):
        for number, (name, (block_bytes, decode)) in enumerate(formats.items()):
            values = lambda seed, n: decode(random_bytes(seed, n * block_bytes).reshape(n, -1)).astype(np.float32).ravel()
            few, many = (64, 65536) if block_bytes <= 4 else (4, 2048)
            seed = 1_000_000 * (number + 1)
            out += [struct.pack("<B", len(name)), name.encode(), struct.pack("<I", few)]
            out += [random_bytes(number, few * block_bytes).tobytes(), values(number, few).tobytes()]
            out += [struct.pack("<IQQ", many, seed, checksum(values(seed, many)))]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(b"".join(out))


main()
