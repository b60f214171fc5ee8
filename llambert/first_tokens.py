"""The last layer of an encoder whose classifier reads the first token of each sequence alone.

Of the other tokens that layer needs keys and values, and nothing else it makes of them is ever
read. In a model of six layers that is a seventh of the work.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ends:
    """Where the sequences of a batch lie, end to end in one row.

    Attributes:
        firsts: the first token of each, an int64 tensor of shape (sequences or more,) on the
            device; what is more is filling.
        runs: (first token, sequences, tokens of each) of neighbours of equal length.
        bounds: the starts and the end of the last, an int32 tensor of shape (sequences + 1,).
        longest: tokens of the longest.
    """

    firsts: Any
    runs: list[tuple[int, int, int]]
    bounds: Any
    longest: int


class FirstTokensLayer(torch.nn.Module):
    """In the place of a layer of BERT's form, for inference without padding.

    Args:
        layer: transformers' own, with `attention` and `feed_forward_chunk`.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, hidden: torch.Tensor, *_: Any, ends: Ends, **__: Any) -> torch.Tensor:
        """(1, tokens, width) to (1, as many as `ends.firsts`, width)."""
        attention = self._layer.attention
        own = attention.self
        first = hidden[:, ends.firsts]
        query, key, value = (
            each[0].unflatten(-1, (-1, own.attention_head_size))  # (tokens, heads, size)
            for each in (own.query(first), own.key(hidden), own.value(hidden))
        )
        found = _attention(query, key, value, ends, own.scaling)
        return self._layer.feed_forward_chunk(attention.output(found.flatten(1)[None], first))


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: Ends, scaling: float
) -> torch.Tensor:
    """Each query of a sequence, over that sequence: (queries, heads, size)."""
    if query.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        each = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        return varlen_attn(query, key, value, each, ends.bounds, 1, ends.longest, scale=scaling)
    found, row = [], 0
    for start, count, length in ends.runs:
        keys, values = (
            x[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)
            for x in (key, value)
        )
        queries = query[row : row + count, :, None]  # (sequences, heads, 1, size)
        found.append(
            torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=scaling)
        )
        row += count
    filling = torch.zeros_like(query[row:, :, None])
    return torch.cat([*found, filling])[:, :, 0]
