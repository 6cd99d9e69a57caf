#!/usr/bin/env python3
"""Writes crates/formats/src/codec/grids/{iq1,iq2,iq3}.rs from the codebooks of the `gguf` package (0.19.0).

The codebooks are facts of the file format: without the same numbers no IQ file can be read. Each entry is packed
into 16 bits, first weight lowest: eight weights of 2 bits (IQ1, IQ2) or four of 4 bits (IQ3), each an index into the
levels that codec/grids/mod.rs names.

    python3 tools/make_grids.py && cargo fmt -p tessera-formats
"""

from pathlib import Path

import numpy as np
from gguf import quants

OUT = Path(__file__).parent.parent / "crates/formats/src/codec/grids"

FILES = {
    "iq1": ("The codebook of IQ1_S and IQ1_M.", ["IQ1_S"]),
    "iq2": ("The codebooks of IQ2_XXS, IQ2_XS and IQ2_S.", ["IQ2_XXS", "IQ2_XS", "IQ2_S"]),
    "iq3": ("The codebooks of IQ3_XXS and IQ3_S.", ["IQ3_XXS", "IQ3_S"]),
}


def packed(name):
    cls = getattr(quants, name)
    cls.init_grid()
    grid = cls.grid.reshape(cls.grid_shape)
    levels = np.array(cls.grid_map, np.float32)
    index = (grid[..., None] == levels).argmax(-1).astype(np.uint32)
    assert (levels[index] == grid).all()
    bits = 16 // grid.shape[1]
    return (index << (np.arange(grid.shape[1], dtype=np.uint32) * bits)).sum(-1)


for file, (title, names) in FILES.items():
    lines = [f"//! {title} Written by tools/make_grids.py; do not edit.", ""]
    for name in names:
        values = ", ".join(f"0x{v:04x}" for v in packed(name))
        entry = "four" if "IQ3" in name else "eight"
        lines += [
            f"/// {name}: an entry holds the level indices of {entry} weights, the first in the lowest bits.",
            f"pub static {name}: [u16; {len(packed(name))}] = [{values}];",
            "",
        ]
    (OUT / f"{file}.rs").write_text("\n".join(lines))
