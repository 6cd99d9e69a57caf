#!/usr/bin/env python3
"""Times bf16 products by cuBLAS through PyTorch on random data, to compare with `bench_prefill`: bench_cublas.py [SHAPE] [TOKENS,...]."""

import statistics
import sys

import torch


def measure(rows: int, depth: int, tokens: int) -> float:
    """Microseconds of one product; weights are rotated through more than the cache."""
    copies = max(1, -(-(300 << 20) // (rows * depth * 2)))
    weights = [torch.randn(rows, depth, device="cuda").to(torch.bfloat16) for _ in range(copies)]
    x = torch.randn(tokens, depth, device="cuda").to(torch.bfloat16)
    y = torch.empty(tokens, rows, device="cuda", dtype=torch.bfloat16)
    turns = max(4, min(100, int(3e-3 / (2 * rows * depth * tokens / 6e14))))

    def sample() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for turn in range(turns):
            torch.matmul(x, weights[turn % copies].T, out=y)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / turns

    sample()
    return statistics.median(sample() for _ in range(7))


def main() -> None:
    rows, depth = map(int, (sys.argv[1] if len(sys.argv) > 1 else "32768x8192").split("x"))
    for tokens in map(int, (sys.argv[2] if len(sys.argv) > 2 else "64,128,512,2048").split(",")):
        microseconds = measure(rows, depth, tokens)
        print(f"cuBLAS bf16 {rows}x{depth} {tokens}: {microseconds:9.1f} us {2 * rows * depth * tokens / microseconds / 1e6:6.1f} TFLOPS")


main()
