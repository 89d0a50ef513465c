"""Features, kNN and probes on the GPU give the numbers of the CPU."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.gpu.devices import CPU, DEVICE, computing_on
from tiny import tiny_recipe
from torch import Tensor

from unlabeled.config.protocols.vectors import FewLabels, Linear, Logistic
from unlabeled.data.streams import open_streams
from unlabeled.engine import build
from unlabeled.engine.method import build_method
from unlabeled.engine.passes.features import Features, extract, network_embedder
from unlabeled.evaluation.vectors import few_labels, linear, logistic
from unlabeled.ops.measures import knn
from unlabeled.ops.measures.health import health

pytestmark = pytest.mark.gpu
CLASSES = 5
ONE = 100 / 300  # percent that one of the test images weighs


@functools.cache
def blobs(n: int, seed: int) -> Features:
    """Return overlapping classes, some images twice, so that neighbours tie."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 24, generator=torch.Generator().manual_seed(7))
    label = torch.randint(0, CLASSES, (n,), generator=generator)
    x = centres[label] + 1.5 * torch.randn(n, 24, generator=generator)
    x[: n // 10] = x[n // 10 : 2 * (n // 10)]
    return Features(x, torch.arange(n), label)


def test_features_are_those_of_the_cpu() -> None:
    """In float32 without TF32, whatever the training used."""
    recipe = tiny_recipe("simclrv2", "colour")
    opened = open_streams(recipe)
    method = build_method(recipe, build.make_info(recipe, opened))
    found = []
    for device in (CPU, DEVICE):
        with computing_on(device):
            embedders = {name: network_embedder(export, device) for name, export in method.exports().items()}
            found.append(extract(embedders, opened["train"].source, batch=100, workers=0, device=device,
                                 max_corrupt=0.0))  # fmt: skip
    for name, part in found[0].items():
        error = (found[1][name].x - part.x).norm() / part.x.norm()
        assert float(error) < 5e-5, name  # TF32 is a thousandth off
        assert torch.equal(found[1][name].index, part.index) and found[1][name].x.device == CPU
        a, b = (health(each[name].x) for each in found)
        assert a == pytest.approx(b, rel=1e-3)


def votes(device: torch.device, search: knn.Search, own: Tensor | None = None) -> dict[int, Tensor]:
    bank, queries = blobs(1500, 0), blobs(300, 1)
    assert bank.label is not None
    return knn.votes(bank.x.to(device), bank.label, queries.x, [1, 20, 200], 0.07, CLASSES, search, own)


@pytest.mark.parametrize("search", ["torch", "faiss"])
def test_votes_of_neighbours_are_those_of_the_cpu(search: knn.Search) -> None:
    if search == "faiss":
        faiss = pytest.importorskip("faiss", reason="faiss is not installed")
        if DEVICE.type == "cuda" and not getattr(faiss, "get_num_gpus", lambda: 0)():
            pytest.skip("faiss is installed without its part for GPUs")
    expected, found = votes(CPU, "torch"), votes(DEVICE, search)
    for k, score in expected.items():
        assert found[k].device.type == DEVICE.type
        torch.testing.assert_close(found[k].cpu(), score, rtol=1e-4, atol=1e-4)


def test_an_image_does_not_vote_on_itself() -> None:
    own = torch.where(torch.arange(300) % 2 == 0, torch.arange(300), -1)
    expected, found = (votes(device, "torch", own) for device in (CPU, DEVICE))
    for k, score in expected.items():
        torch.testing.assert_close(found[k].cpu(), score, rtol=1e-4, atol=1e-4)


def test_scores_of_probes_are_those_of_the_cpu() -> None:
    """Solvers stop where the gradient is small, so an image beside a boundary may fall to either side."""
    protocols = [(linear, Linear(protocol="linear", epochs=2, min_updates=60)),
                 (logistic, Logistic(protocol="logistic")),
                 (few_labels, FewLabels(protocol="few-labels", draws=5))]  # fmt: skip
    for module, cfg in protocols:
        expected, found = (module.run(cfg, blobs(1500, 0), blobs(300, 1), CLASSES, device) for device in (CPU, DEVICE))
        assert expected.keys() == found.keys()
        for name, score in expected.items():
            assert abs(found[name].value - score.value) <= ONE + 1e-9, name
            assert 30 < score.value < 100, "the probes have something to learn, and not everything"
