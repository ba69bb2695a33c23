"""Convolutions of small maps as matrix products, which processors train about twice as fast."""

import torch
from torch import nn
from torch.nn import functional

POSITIONS = 16  # largest map whose convolution with more than one position is faster as a matrix product


class MatrixConv2d(nn.Conv2d):
    """A convolution that is computed in training as the product of its weights with the neighbourhoods of the map.

    With maps of 2 × 2 to 4 × 4 positions and hundreds of channels, as in the last stages of a ResNet50 at 64 pixels,
    the gradients of a convolution take several times as long as those of this product (im2col, Chellapilla et al. 2006,
    https://inria.hal.science/inria-00112631). Larger maps, and prediction, are computed as in `torch.nn.Conv2d`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve maps.

        Parameters
        ----------
        x : (B, C, H, W) float

        Returns
        -------
        (B, D, h, w) float
        """
        rows, columns = (
            (size + 2 * pad - kernel) // stride + 1
            for size, pad, kernel, stride in zip(x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)
        )
        if not self.training or (self.kernel_size != (1, 1) and rows * columns > POSITIONS):
            return super().forward(x)
        weights = self.weight.permute(0, 2, 3, 1).flatten(1)  # (D, kernel positions * C), as the neighbourhoods
        return functional.linear(self._neighbourhoods(x, rows, columns), weights, self.bias).permute(0, 3, 1, 2)

    def _neighbourhoods(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Values under the kernel at each output position (B, rows, columns, kernel positions * C)."""
        (height, width), (down, right), (above, left) = self.kernel_size, self.stride, self.padding
        x = x.permute(0, 2, 3, 1)
        if above or left:
            x = functional.pad(x, (0, 0, left, left, above, above))
        shifts = [
            x[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
            for i in range(height)
            for j in range(width)
        ]
        return torch.cat(shifts, dim=3) if len(shifts) > 1 else shifts[0]


def use_matrix_products(network: nn.Module) -> nn.Module:
    """Make the plain convolutions of a network `MatrixConv2d`; dilated, grouped and subclassed ones stay.

    Parameters
    ----------
    network : nn.Module
        Changed in place; names, weights and predictions stay.

    Returns
    -------
    nn.Module
        The same network.
    """
    for part in network.modules():
        plain = type(part) is nn.Conv2d and part.groups == 1 and part.dilation == (1, 1)
        if plain and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            part.__class__ = MatrixConv2d
    return network
