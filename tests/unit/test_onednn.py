"""Matrix products by oneDNN against torch's own."""

import copy

import pytest
import torch

from llambert.onednn import train_linear_layers


def gradients(model: torch.nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    model(inputs).square().sum().backward()
    return [inputs.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 24), (3, 5, 24)])
def test_a_trained_layer_has_torch_s_results_and_gradients(bias, shape):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Linear(24, 40, bias), torch.nn.GELU(), torch.nn.Linear(40, 7, bias)
    )
    trained = copy.deepcopy(plain)
    train_linear_layers(trained)
    assert {type(layer) for layer in trained}.isdisjoint({torch.nn.Linear})
    assert trained.state_dict().keys() == plain.state_dict().keys()
    # every second row, as where a classifier takes the first token of each text
    wide = torch.randn(2 * shape[0], *shape[1:])
    inputs = [wide[::2].detach().requires_grad_() for _ in range(2)]
    torch.testing.assert_close(trained(inputs[0]), plain(inputs[1]))
    found, expected = gradients(trained, inputs[0]), gradients(plain, inputs[1])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_gets_no_gradient_and_passes_one_on():
    layer = torch.nn.Linear(8, 4)
    train_linear_layers(layer)
    layer.requires_grad_(False)
    inputs = torch.randn(3, 8, requires_grad=True)
    layer(inputs).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(3, 8))


def test_another_dtype_takes_torch_s_way():
    layer = torch.nn.Linear(8, 4).double()
    expected = layer(inputs := torch.randn(3, 8, dtype=torch.float64))
    train_linear_layers(layer)
    assert torch.equal(layer(inputs), expected)
