"""Where tensors are, on a pretended GPU (see `pretended`): these tests need none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tests.gpu.kernels import Recorded
from tests.gpu.pretended import CPU, CUDA, Elsewhere, pretended_cuda
from tiny import BATCH, VARIANTS, tiny_recipe, tiny_run

from unlabeled.config.protocols.vectors import FewLabels, Knn, Linear, Logistic
from unlabeled.data import loader
from unlabeled.data.sources.subset import Part
from unlabeled.data.streams import open_streams
from unlabeled.engine import build
from unlabeled.engine.method import build_method
from unlabeled.engine.passes.features import extract, network_embedder
from unlabeled.evaluation.vectors import few_labels, knn, linear, logistic

every_variant = pytest.mark.parametrize(("method", "variant"), VARIANTS, ids=["-".join(v) for v in VARIANTS])
# SimMatchV2's losses on an empty bank are left out, which their values decide; POA counts the patches that are hidden
READ = {"simmatchv2": {"torch.Tensor.__bool__": 2}, "poa": {"torch.Tensor.cpu": 1}}
UNMASKED = ("poa", "later")  # in its first update
# torchvision's warps put a matrix of their own on the device, per operation and magnitude
MATRICES = [*(("reinforcement", variant) for variant in ("plain", "mixed", "label")), ("ssld", "running")]
# and its transforms by single images, of erasing too, read what they compute
TORCHVISION = ("finetune", "regularised")


@pytest.mark.parametrize("fault", ["x + cpu", "torch.cat([x, cpu])", "cpu[places]", "x.numpy()",
                                   "torch.stack([x.sum(), cpu.sum()])", "torch.where(x > 0, x, cpu)"])
def test_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda(monkeypatch):
        cpu = torch.arange(3.0)
        x = cpu.pin_memory().to(CUDA, non_blocking=True)
        with pytest.raises((RuntimeError, TypeError), match="cuda:0"):
            eval(fault, {"torch": torch, "x": x, "cpu": cpu, "places": x.long()})


def test_what_is_allowed_computes_and_waiting_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda(monkeypatch) as gpu:
        cpu = torch.arange(3.0)
        x = torch.zeros(3, device=CUDA)
        x[torch.tensor([0, 2])] = cpu[[0, 2]].pin_memory().to(CUDA, non_blocking=True)
        x = x * torch.tensor(2.0) + torch.ones_like(x)
        assert x.device == CUDA and x.is_cuda and isinstance(x, Elsewhere) and not gpu.waits
        assert type(x.cpu()) is torch.Tensor and x.to(CPU).tolist() == [1, 1, 5]
        cpu.to(CUDA)
        torch.tensor([1], device=CUDA)
    assert sum(gpu.waits.values()) == 4, gpu.waits


@every_variant
def test_an_update_of_two_processes_is_on_the_gpu_and_waits_once(
    method: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one wait is that for the check for NaN, whose answer decides whether the update is done."""
    recipe = tiny_recipe(method, variant, ["train.sync_bn=false"])
    with pretended_cuda(monkeypatch, processes=2) as gpu:
        tiny = tiny_run(recipe)
        micros = [{name: batch.pin_memory() for name, batch in tiny.micros(0)[0].items()}]
        assert len(next(iter(micros[0].values())).index) in (BATCH // 2, 6, 32)
        gpu.waits.clear()
        with Recorded() as kernels:
            outcome = tiny.updater.update(0, micros, [0])
        found = gpu.waits - Counter({"torch.Tensor.tolist": 1})
    assert not outcome.dropped and all(x.is_cuda for x in outcome.values.values())
    if (method, variant) in MATRICES:
        found.pop("torch.tensor", None)
    allowed = found if (method, variant) == TORCHVISION else READ.get(method, {})
    allowed = {} if (method, variant) == UNMASKED else allowed
    assert found == allowed, "an update waits for the GPU, which stands idle"
    assert len(kernels.names) > 40 and not kernels.raising(), "these raise under train.deterministic"


def test_losses_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe("simclrv2", "memory")
    expected = tiny_run(recipe).train(0, 3)
    with pretended_cuda(monkeypatch):
        assert tiny_run(recipe).train(0, 3) == pytest.approx(expected, rel=1e-5)


def test_features_and_probes_are_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_pin", lambda batch, device: batch)  # in a thread, where nothing is pretended
    recipe = tiny_recipe("simclrv2", "plain")
    opened = open_streams(recipe)
    method = build_method(recipe, build.make_info(recipe, opened))
    source = Part(opened["train"].source, np.arange(200))
    found = {}
    for device in (CPU, CUDA):
        with pretended_cuda(monkeypatch):
            embedder = network_embedder(next(iter(method.exports().values())), device)
            part = extract({"x": embedder}, source, batch=256, workers=0, device=device, max_corrupt=0.0)["x"]
            assert type(part.x) is torch.Tensor
            short = {"epochs": 1, "min_updates": 3}
            jobs = [(knn, Knn(protocol="knn", k=[5])),
                    (linear, Linear(protocol="linear", lr=[0.1], weight_decay=[0.0], **short)),
                    (logistic, Logistic(protocol="logistic", c=[0.01])),
                    (few_labels, FewLabels(protocol="few-labels", labels_per_class=[1], draws=2))]
            scores = [module.run(cfg, part, part, 10, device) for module, cfg in jobs]
        found[device] = [{name: score.value for name, score in each.items()} for each in scores]
    assert found[CUDA] == found[CPU]
