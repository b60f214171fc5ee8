"""A linear layer by oneDNN, for inference on a CPU."""

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
