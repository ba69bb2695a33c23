"""Augmentation of training slices."""

import pytest
import torch

from adlib.training.augmentation import augment_light, augment_mri, mirror


def block():
    x = torch.zeros(6, 3, 32, 32)
    x[:, :, 10:22, 6:14] = 1
    return x


@pytest.mark.parametrize("vary", [augment_light, augment_mri])
def test_augmentation_depends_on_its_generator_alone(vary):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = vary(block(), torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = (vary(block(), torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3, 32, 32) and first.isfinite().all()
    assert (first[:, 0, :, :16].sum((1, 2)) > first[:, 0, :, 16:].sum((1, 2))).all()
    assert first[:, :, 0, 0].abs().median() < 0.1


def test_mirror_skips_sagittal_channels():
    mirrored = mirror(block(), torch.Generator().manual_seed(0), (0, 1))
    turned = mirrored[:, 0, :, 16:].sum((1, 2)) > 0
    assert 0 < turned.sum() < 6
    assert torch.equal(mirrored[turned][:, 1], block()[turned][:, 1].flip(-1))
    assert torch.equal(mirrored[:, 2], block()[:, 2])
