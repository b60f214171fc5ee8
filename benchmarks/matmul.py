"""The rate of a machine's matrix product, the bound that an encoder's speed is held against."""

import os
import time
from collections.abc import Callable
from typing import Any

# Rows and columns of the matrices multiplied, and products in one timing: on a GPU so many that
# their launch and the wait for them do not count.
_PRODUCTS = {"cpu": (4096, 1), "cuda": (8192, 20)}


def matmul_gflops(device: str, dtype: str, cards: int) -> float:
    """The rate of the product of two large matrices, by the faster of the libraries at hand.

    Args:
        device: 'cpu', for all of its cores, or 'cuda', for the first card.
        cards: by how many a card's rate is multiplied.
    """
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    size, products = _PRODUCTS[device]
    a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    ways = [lambda: a @ b]
    if device == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))
    seconds = min(_seconds(way, device, products) for way in ways)
    return (cards if device == "cuda" else 1) * products * 2 * size**3 / seconds / 1e9


def _seconds(way: Callable[[], Any], device: str, times: int, repeats: int = 5) -> float:
    """The least that so many calls took, the first left out."""
    import torch

    found = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            way()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found[1:])
