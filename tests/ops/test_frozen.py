"""Frozen networks that normalise by the batch: statistics per block, buffers as they were, nothing dropped."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from unlabeled.errors import UserError
from unlabeled.ops.frozen import Frozen

HALVES = [slice(0, 8), slice(8, 16)]


def network() -> nn.Module:
    torch.manual_seed(0)
    fused = BatchNormAct2d(4, drop_layer=lambda: nn.Dropout(0.9))
    return nn.Sequential(nn.Conv2d(3, 4, 3), fused, nn.Dropout(0.9), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def images(seed: int = 0) -> torch.Tensor:
    scale = torch.linspace(1, 3, 16)[:, None, None, None]
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * scale


def by_hand(plain: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Normalise by the batch with torch's own training mode, in a copy whose dropout is off."""
    plain = copy.deepcopy(plain).eval()
    for norm in (plain[1], plain[4]):
        norm.training = True
    return plain(x).detach()


def test_every_block_is_normalised_by_its_own_images() -> None:
    frozen, x = Frozen(network(), "x", by_batch=True), images()
    expected = torch.cat([by_hand(network(), x[rows]) for rows in HALVES])
    torch.testing.assert_close(frozen(x, HALVES), expected, rtol=0, atol=0)
    torch.testing.assert_close(frozen(x), by_hand(network(), x), rtol=0, atol=0)
    assert not torch.allclose(frozen(x), expected)


def test_other_values_names_shapes_and_types_are_other_weights() -> None:
    def held(**weights: torch.Tensor) -> dict[str, torch.Tensor]:
        module = nn.Module()
        for name, value in weights.items():
            module.register_buffer(name, value)
        return Frozen(module, "runs/teacher").state_dict()

    ones, twos = torch.ones(2, 3), 2 * torch.ones(2, 3)
    kept = held(a=ones, b=twos)
    Frozen(nn.Module(), "x").load_state_dict(held())
    assert torch.equal(kept["digest"], held(a=ones.clone(), b=twos.clone())["digest"])
    for other in (held(a=twos, b=ones), held(b=ones, a=twos), held(a=ones, c=twos), held(a=ones.T, b=twos),
                  held(a=ones.view(torch.int32), b=twos), held(a=ones)):
        assert not torch.equal(kept["digest"], other["digest"])
    with pytest.raises(UserError, match="other weights of the frozen network 'x'; put the former ones back"):
        Frozen(nn.Module(), "x").load_state_dict(kept)


def test_a_block_does_not_depend_on_what_stands_beside_it() -> None:
    frozen = Frozen(network(), "x", by_batch=True)
    other = torch.cat([images()[:8], images(1)[8:]])
    assert torch.equal(frozen(images(), HALVES)[:8], frozen(other, HALVES)[:8])
    assert not torch.allclose(frozen(images())[:8], frozen(other)[:8])


def test_running_statistics_serve_every_block_alike() -> None:
    frozen, plain = Frozen(network(), "x"), network().eval()
    assert torch.equal(frozen(images(), HALVES), plain(images()))
    assert torch.equal(frozen(images())[:8], frozen(torch.cat([images()[:8], images(1)[8:]]))[:8])


def test_buffers_stay_and_nothing_is_dropped() -> None:
    frozen = Frozen(network(), "x", by_batch=True)
    before = {name: value.clone() for name, value in frozen.network.state_dict().items()}
    first = frozen(images())
    for seed in range(10):
        frozen(images(seed) * float("inf") if seed == 5 else images(seed))
    after = frozen.network.state_dict()
    assert before.keys() == after.keys() == network().state_dict().keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(frozen(images()), first) and not first.requires_grad
    assert torch.equal(Frozen(network(), "x").digest, frozen.digest)
