"""A classifier's forward pass at the speed of the device, padded or without any padding.

Without padding, the sequences of a batch lie end to end in one row. Everything but attention works
on single tokens and does not notice; attention runs within each sequence. That needs no mask and
computes nothing that is thrown away; of the last layer, only what becomes of each sequence's first
token is computed, for nothing else is read. It is used for the families in `_FIRST_POSITION`, on a
GPU where flash attention runs; else batches are padded.
"""

import timeit
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]  # the token ids of one sequence

_ATTENTION = "llambert_end_to_end"
_LONG = 256  # tokens from which faster products may pay for being called head by head
_TRIALS = 5  # of each way of attention; the fastest counts, for others may have disturbed
# Families whose classification reads the first token alone, by transformers' class, and the number
# of the first position: RoBERTa counts from the padding token's id plus one.
_FIRST_POSITION = {
    "BertForSequenceClassification": lambda config: 0,
    "RobertaForSequenceClassification": lambda config: config.pad_token_id + 1,
    "XLMRobertaForSequenceClassification": lambda config: config.pad_token_id + 1,
    "CamembertForSequenceClassification": lambda config: config.pad_token_id + 1,
}


class Forward:
    """Sequences in, logits out.

    Args:
        model: a Hugging Face sequence classifier, on its device, in its dtype; it is changed, and
            good for nothing else afterwards.
        pad_id: the tokenizer's id of the padding token.

    Attributes:
        device, dtype: the model's.
        padded: whether batches are padded to their longest sequence.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        import torch

        from llambert.onednn import ROWS, fill_linear_layers

        self._model = model.eval()
        self._pad_id = pad_id
        self.device, self.dtype = model.device, model.dtype
        known = _known(model)
        self.padded = not (known and (self.device.type == "cpu" or _has_flash(model)))
        if not self.padded:
            self._head = _end_to_end_only(model)
            self._first_position = _FIRST_POSITION[type(model).__name__](model.config)
        self._by_head, self._multiple = False, 1
        if self.device.type == "cpu" and _onednn_multiplies(self.dtype):
            if known:
                _use_onednn(model)
                self._multiple = ROWS
                self._by_head = self.dtype == torch.float32 and _heads_pay(model.config)
            elif self.dtype == torch.bfloat16:  # which torch multiplies by oneDNN
                fill_linear_layers(model)

    def __call__(self, sequences: Sequence[Tokens]) -> Any:
        """Logits as a tensor of shape (sequences, labels) on the model's device."""
        import torch

        with torch.inference_mode():
            return self._padded(sequences) if self.padded else self._end_to_end(sequences)

    def cells(self, lengths: NDArray[np.int64]) -> int:
        """Tokens and padding that are computed for a batch of sequences of these lengths."""
        if self.padded:
            return len(lengths) * int(lengths.max())
        return -(-int(lengths.sum()) // self._multiple) * self._multiple

    def _padded(self, sequences: Sequence[Tokens]) -> Any:
        inputs = pad(sequences, self._pad_id)
        if all(len(tokens) == len(sequences[0]) for tokens in sequences):
            del inputs["attention_mask"]
        return self._model(**{name: self._to_device(x) for name, x in inputs.items()}).logits

    def _end_to_end(self, sequences: Sequence[Tokens]) -> Any:
        import torch

        from llambert.first_tokens import Ends

        lengths = [len(tokens) for tokens in sequences]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.concatenate([np.arange(n) for n in lengths]) + self._first_position
        hidden = self._model.base_model(
            input_ids=self._filled(np.concatenate(sequences), self._pad_id)[None],
            position_ids=self._filled(positions, self._first_position)[None],
            ends=Ends(
                firsts=self._filled(starts[:-1], 0),
                runs=_runs(lengths),
                bounds=self._to_device(torch.from_numpy(starts.astype(np.int32))),
                longest=max(lengths),
            ),
            by_head=self._by_head,
        ).last_hidden_state[0]
        return self._head(hidden[: len(sequences), None].float())

    def _filled(self, values: NDArray[np.integer], filling: int) -> Any:
        """`values` on the device, with `filling` at the end up to a multiple of `ROWS`."""
        import torch

        short = -len(values) % self._multiple
        values = np.pad(values.astype(np.int64), (0, short), constant_values=filling)
        return self._to_device(torch.from_numpy(values))

    def _to_device(self, tensor: Any) -> Any:
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _onednn_multiplies(dtype: Any) -> bool:
    """Whether oneDNN has products of `dtype` for this CPU; bfloat16 wants AVX-512 at least."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    half = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return half or dtype == torch.float32


def pad(sequences: Sequence[Tokens], pad_id: int) -> dict[str, Any]:
    """`input_ids` and `attention_mask` as int64 tensors of shape (batch, longest)."""
    import torch

    longest = max(len(tokens) for tokens in sequences)
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def _known(model: Any) -> bool:
    """Whether `model` is a family of `_FIRST_POSITION`, by transformers' own code."""
    kind = type(model)
    absolute = getattr(model.config, "position_embedding_type", "absolute") == "absolute"
    return (
        kind.__name__ in _FIRST_POSITION
        and kind.__module__.startswith("transformers.models.")
        and not getattr(model.config, "is_decoder", False)
        and absolute
    )


def _has_flash(model: Any) -> bool:
    """Whether flash attention over sequences of different lengths runs on the model's GPU.

    It wants half precision, an Ampere or later, and heads of a multiple of 8 up to 256.
    """
    import torch

    size = model.config.hidden_size // model.config.num_attention_heads
    half = model.dtype in (torch.float16, torch.bfloat16)
    recent = torch.cuda.get_device_capability(model.device) >= (8, 0)
    return half and recent and size % 8 == 0 and size <= 256


def _runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first token, sequences, tokens of each) of neighbours of equal length."""
    runs, start = [], 0
    for length, same in groupby(lengths):
        count = len(list(same))
        runs.append((start, count, length))
        start += count * length
    return runs


def _end_to_end_only(model: Any) -> Any:
    """Have `model` take sequences end to end, by the attention below, for which there is no mask.

    Returns:
        What makes logits of first tokens, in float32: pooler, if there is one, and classifier.
        bfloat16 would leave a few hundred different confidences.
    """
    import torch
    from transformers import AttentionInterface

    from llambert.first_tokens import FirstTokensLayer

    AttentionInterface.register(_ATTENTION, _attention)
    model.set_attn_implementation(_ATTENTION)
    base = model.base_model
    base.encoder.layer[-1] = FirstTokensLayer(base.encoder.layer[-1])
    # taken out, for the model would call it too
    pooler, base.pooler = getattr(base, "pooler", None), None
    return torch.nn.Sequential(pooler or torch.nn.Identity(), model.classifier).float()


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    ends: Any,
    by_head: bool,
    scaling: float,
    **_: Any,
) -> tuple[Any, None]:
    """Attention within each sequence: (1, heads, tokens, size) to (1, tokens, heads, size).

    Args:
        ends: where the sequences lie, a `first_tokens.Ends`.
        by_head: on a CPU, long sequences by oneDNN, one head after the other.
    """
    import torch

    from llambert.onednn import attention

    if query.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        tokens_first = [x[0].transpose(0, 1) for x in (query, key, value)]
        longest, bounds = ends.longest, ends.bounds
        found = varlen_attn(*tokens_first, bounds, bounds, longest, longest, scale=scaling)
        return found[None], None
    _, heads, tokens, size = query.shape
    out = torch.empty((1, tokens, heads, size), dtype=query.dtype)
    for start, count, length in ends.runs:
        end = start + count * length
        parts = [
            x[0, :, start:end].unflatten(1, (count, length)).transpose(0, 1)
            for x in (query, key, value)
        ]
        if by_head and length >= _LONG:
            each = [attention(q, k, v, scaling) for q, k, v in zip(*parts, strict=True)]
            found = torch.stack(each)
        else:
            found = torch.nn.functional.scaled_dot_product_attention(*parts, scale=scaling)
        out[0, start:end] = found.transpose(1, 2).reshape(end - start, heads, size)
    out[0, end:] = 0  # the filling
    return out, None


def _heads_pay(config: Any) -> bool:
    """Whether attention by oneDNN is faster here than torch's own: measured, in some 0.1 s.

    Torch multiplies by MKL. On an EPYC oneDNN's attention made the whole of MiniLM-L6 faster, on a
    Xeon with AMX slower by a fifth.
    """
    import torch

    from llambert.onednn import attention

    heads = config.num_attention_heads
    query, key, value = torch.randn(3, 1, heads, 2 * _LONG, config.hidden_size // heads)
    whole = torch.nn.functional.scaled_dot_product_attention

    with torch.inference_mode():
        ways = (
            lambda: attention(query[0], key[0], value[0], 1.0),
            lambda: whole(query, key, value, scale=1.0),
        )
        by_head, at_once = (min(timeit.repeat(way, number=1, repeat=_TRIALS)) for way in ways)
    return by_head < at_once


def _use_onednn(model: Any) -> None:
    """Multiply by oneDNN instead of MKL, with the weights packed once and GELU in the same pass.

    MKL runs its AVX2 kernels on AMD's processors, oneDNN those of the machine: 1.9 times the speed
    of the whole MiniLM-L6 on an EPYC with AVX-512.
    """
    import torch

    from llambert.onednn import OneDnnLinear

    exact_gelu = getattr(model.config, "hidden_act", None) == "gelu"
    for layer in [m for m in model.base_model.modules() if hasattr(m, "intermediate_act_fn")]:
        if exact_gelu:
            layer.dense = OneDnnLinear(layer.dense, "gelu")
            layer.intermediate_act_fn = torch.nn.Identity()
    for parent in list(model.base_model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, OneDnnLinear(child, "none"))
