"""Label-free health: closed forms, and the alarm that rings for collapse and for nothing else."""

import math

import pytest
import torch

from unlabeled.ops.measures.health import (
    alignment,
    collapse_warning,
    effective_rank,
    feature_std,
    health,
    thin,
    uniformity,
)


def noise(n: int, width: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def test_feature_std_of_even_directions_is_one_and_of_equal_ones_zero():
    assert feature_std(noise(4000, 64)) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(50, 64)) == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])) == pytest.approx(math.sqrt(2) / 2)


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_effective_rank_is_the_entropy_of_the_singular_values(shape):
    x = noise(*shape)
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum() + 1e-7
    assert effective_rank(x) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)


def test_effective_rank_counts_equal_directions_at_any_scale():
    x = torch.eye(6).repeat(5, 1)[:, :4]
    assert effective_rank(x) == pytest.approx(4, rel=1e-4)
    assert effective_rank(1e-20 * x) == pytest.approx(4, rel=1e-4)
    assert effective_rank(torch.ones(30, 16)) == pytest.approx(1, rel=1e-4)


def test_uniformity_and_alignment_closed_forms():
    poles = torch.tensor([[2.0, 0.0], [-5.0, 0.0]])
    assert uniformity(poles) == pytest.approx(-8)
    assert uniformity(torch.ones(10, 3)) == pytest.approx(0, abs=1e-5)
    x = noise(200, 16)
    unit = torch.nn.functional.normalize(x, dim=1)
    assert uniformity(x) == pytest.approx(float(torch.pdist(unit).square().mul(-2).exp().mean().log()), abs=1e-5)
    assert alignment(poles, torch.tensor([[0.0, 1.0], [-1.0, 0.0]])) == pytest.approx(1)


def test_large_sets_are_thinned():
    x = noise(9000, 8)
    assert uniformity(x) == pytest.approx(uniformity(x[:4096]), abs=0.02)


def test_collapse_is_named_with_a_cure():
    generator = torch.Generator().manual_seed(1)
    point = torch.ones(500, 64) + 1e-3 * torch.randn(500, 64, generator=generator)
    line = torch.randn(500, 1, generator=generator) * torch.ones(1, 64)
    assert "almost the same features" in collapse_warning(health(point))
    assert "effective rank 1.0" in collapse_warning(health(line))
    assert "not finite" in collapse_warning(health(torch.full((10, 4), math.nan)))
    assert all("optim." in collapse_warning(health(x)) for x in (point, line))


def test_healthy_features_raise_no_alarm():
    clusters = torch.eye(10).repeat_interleave(50, 0) @ noise(10, 64) + 0.1 * noise(500, 64)
    rectified = noise(500, 64).relu() + 3  # a large common mean, as after a ReLU
    for x in (noise(500, 64), clusters, rectified):
        assert collapse_warning(health(x)) is None


def test_half_precision_features_are_widened():
    x = noise(300, 32)
    assert health(x.bfloat16())["uniformity"] == pytest.approx(health(x.bfloat16().float())["uniformity"])
    with torch.autocast("cpu", torch.bfloat16):
        assert uniformity(x) == pytest.approx(uniformity(x.clone()))


def test_what_is_left_is_spread_evenly():
    assert thin(torch.arange(40.0)[:, None], 4).flatten().tolist() == [0, 10, 20, 30]
    assert thin(torch.arange(3.0)[:, None], 4).flatten().tolist() == [0, 1, 2]
