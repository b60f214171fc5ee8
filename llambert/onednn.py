"""Linear layers and attention by oneDNN, for inference on a CPU."""

import torch


class OneDnnLinear(torch.nn.Module):
    """`torch.nn.Linear` with packed weights, followed in the same pass by an activation.

    The operators are those that torch's own compiler puts in the place of linear layers.

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
    product = torch.ops.mkldnn._linear_pointwise
    out = torch.empty(query.shape)
    query, key = (query * scaling).contiguous(), key.contiguous()
    turned = value.transpose(1, 2).contiguous()
    for head in range(len(query)):
        scores = product(query[head], key[head], None, "none", [], "")
        out[head] = product(scores.softmax(-1), turned[head], None, "none", [], "")
    return out
