"""Matrix products by oneDNN on a CPU: linear layers and attention.

The operators are those that torch's own compiler puts in the place of linear layers. MKL, which
torch itself calls, runs slower kernels on AMD's processors.
"""

from typing import Any

import torch

# Rows of a product, such as a batch's tokens, are filled up to a multiple of this: of each number
# of them that it meets oneDNN keeps kernels for good, some 300 KB.
ROWS = 32


class OneDnnLinear(torch.nn.Module):
    """For inference: `torch.nn.Linear` with packed weights, and an activation in the same pass.

    Args:
        plain: the layer; its weights are copied.
        activation: 'none', or 'gelu' (the exact one, by erf).
    """

    def __init__(self, plain: torch.nn.Linear, activation: str) -> None:
        super().__init__()
        self.bias = plain.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())
        self._activation = activation
        self._algorithm = "none" if activation == "gelu" else ""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self.bias, self._activation, [], self._algorithm
        )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention of one sequence: three of (heads, tokens, size), in float32, to the same.

    One head after the other, so that its scores stay in the core's cache.
    """
    tokens = query.shape[1]
    query, key, value = (_filled(each) for each in (query * scaling, key, value))
    out = torch.empty(query.shape)
    turned = value.transpose(1, 2).contiguous()
    for head in range(len(query)):
        scores = _product(query[head], key[head])
        scores[:, tokens:] = -torch.inf
        out[head] = _product(scores.softmax(-1), turned[head])
    return out[:, :tokens]


def fill_linear_layers(model: torch.nn.Module) -> None:
    """Let the model's linear layers meet few numbers of rows, for inference; in place."""
    _turn_linear_layers(model, _FilledLinear)


def _turn_linear_layers(model: torch.nn.Module, kind: type[torch.nn.Linear]) -> None:
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = kind


class _FilledLinear(torch.nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        rows = inputs.reshape(-1, self.in_features)
        found = super().forward(_filled(rows))[: len(rows)]
        return found.view(*inputs.shape[:-1], self.out_features)


def _filled(rows: torch.Tensor) -> torch.Tensor:
    """(…, rows, n), contiguous, with zeros at its end up to a multiple of `ROWS`."""
    short = -rows.shape[-2] % ROWS
    return torch.nn.functional.pad(rows, (0, 0, 0, short)) if short else rows.contiguous()


def train_linear_layers(model: torch.nn.Module) -> None:
    """Let the model's linear layers, and their gradients, be computed by oneDNN; in place.

    Weights, names and results stay as they are, but for rounding. A batch that is not float32, or
    not on the CPU, takes torch's way.
    """
    _turn_linear_layers(model, _TrainedLinear)


class _TrainedLinear(torch.nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        if inputs.dtype != torch.float32 or inputs.device.type != "cpu":
            return super().forward(inputs)
        return _LinearFunction.apply(inputs, self.weight, self.bias)


class _LinearFunction(torch.autograd.Function):
    """The product and its derivatives.

    It keeps the weight itself for the backward pass, which under ZeRO-3 is gathered anew then.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs.contiguous(), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        of_inputs = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = _product(rows, weight.t().contiguous()).view_as(inputs)
        if ctx.needs_input_grad[1]:
            seen = inputs.reshape(-1, inputs.shape[-1])  # (rows, in)
            of_weight = _product(rows.t().contiguous(), seen.t().contiguous())
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_inputs, of_weight, of_bias


def _product(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(…, n) and (m, n) to (…, m): left times right transposed; both must be contiguous."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
