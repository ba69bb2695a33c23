"""Convolutions computed as matrix products equal torch's, in values and gradients, and only in training."""

import pytest
import torch
from torch import nn

from adlib.training.matrix_convolution import MatrixConv2d, use_matrix_products
from adlib.training.network import ResNet50


def trained_once(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.sin().sum().backward()
    return [y.detach(), x.grad, *(value.grad for value in layer.parameters())]


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (12, 10)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"),
    [(1, 1, 0, False), (1, 2, 0, True), (3, 1, 1, True), (3, 2, 1, False), ((3, 1), (2, 1), (0, 2), False)],
)
def test_values_and_gradients_equal_those_of_torch(size, kernel, stride, padding, bias):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(5, 7, kernel, stride, padding, bias=bias)
    expected = trained_once(plain, x)
    plain.zero_grad(set_to_none=True)
    (made,) = use_matrix_products(nn.Sequential(plain))
    assert type(made) is MatrixConv2d
    for value, other in zip(trained_once(made, x), expected, strict=True):
        assert value.shape == other.shape
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def test_prediction_is_that_of_torch_bit_for_bit():
    torch.manual_seed(0)
    network, x = ResNet50(4).eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(x)
        assert torch.equal(use_matrix_products(network)(x), expected)


def test_layers_that_are_no_plain_convolutions_stay():
    class Special(nn.Conv2d):
        pass

    layers = [
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Special(4, 4, 3),
        nn.Linear(4, 4),
    ]
    kinds = [type(layer) for layer in layers]
    assert [type(layer) for layer in use_matrix_products(nn.Sequential(*layers))] == kinds


def test_only_convolutions_of_small_maps_are_matrix_products(monkeypatch):
    calls = []
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda layer, x, *_: calls.append(x.shape) or x)
    layer = use_matrix_products(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)))
    layer(torch.zeros(1, 2, 4, 4))
    assert not calls
    layer(torch.zeros(1, 2, 8, 8))
    assert calls == [(1, 2, 8, 8)]
