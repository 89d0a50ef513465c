"""Whole runs on the GPU: resume to the bit, compiled, in other layouts, and the memory that a dry run promises."""

from __future__ import annotations

import gc
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from tests.gpu.devices import DEVICE, ieee_float32
from tiny import TINY, UPDATES, differing, tiny_recipe, tiny_run

from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.engine.updater import Updater
from unlabeled.ops.machine.compiler import compiler_problem

pytestmark = pytest.mark.gpu

# one of every method, and what else keeps state
KEPT = [(method, next(iter(variants))) for method, variants in TINY.items()]
KEPT += [("simclrv2", "memory"), ("pixpro", "instance"), ("simmatchv2", "randaugment")]
PRECISIONS = ["fp32", "bf16", "fp16"] if DEVICE.type == "cuda" else ["fp32", "bf16"]


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize(("method", "variant"), KEPT, ids=["-".join(v) for v in KEPT])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_three_and_three_updates_are_six_bit_for_bit(
    method: str, variant: str, precision: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real checkpoint, after a signal that comes in the third update."""
    if precision != PRECISIONS[-1] and (method, variant) != ("simclrv2", "memory"):
        pytest.skip("one method in every precision, all methods in the one whose scaler keeps state too")
    recipe = tiny_recipe(method, variant, ["train.deterministic=true", f"train.precision={precision}"])
    assert train(recipe, tmp_path / "whole").finished
    update = Updater.update

    def interrupted(self, number, *args, **kwargs):
        if number == UPDATES // 2 - 2:  # what comes within an update is heard in the next
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, number, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Updater, "update", interrupted)
        first = train(recipe, tmp_path / "parts")
    assert not first.finished and first.update == UPDATES // 2
    assert train(recipe, tmp_path / "parts").finished
    whole, parts = (load_run(tmp_path / name).method.state_dict() for name in ("whole", "parts"))
    assert not differing(whole, parts)


@pytest.mark.parametrize(("method", "variant"), [("simclrv2", "colour"), ("pixpro", "plain")])
def test_compiled_losses_are_close(method: str, variant: str, device: torch.device) -> None:
    if problem := compiler_problem(device):
        pytest.skip(f"torch.compile does not work here: {problem}")
    losses = {}
    for compile in ("false", "true"):
        with ieee_float32():
            tiny = tiny_run(tiny_recipe(method, variant, [f"train.compile={compile}"]))
            losses[compile] = tiny.train(0, 2)
    assert losses["true"] == pytest.approx(losses["false"], rel=2e-3, abs=2e-3)


def test_layouts_give_the_same(device: torch.device) -> None:
    losses, layouts = [], []
    for last in ("true", "false"):
        with ieee_float32():
            tiny = tiny_run(tiny_recipe("simclrv2", "colour", [f"train.channels_last={last}"]))
            losses.append(tiny.train(0, 2))
        weight = next(p for p in tiny.updater.method.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1)
        layouts.append(weight.is_contiguous(memory_format=torch.channels_last))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and layouts == [True, False]


def test_memory_is_what_a_dry_run_says(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("simclrv2", "colour", ["train.deterministic=true", "train.checkpoint_every=null"])
    gc.collect()  # what earlier tests have left on the GPU would count
    train(recipe, tmp_path / "run", dry_run=True)
    said = re.search(r"([\d.]+) images/s.*peak memory per process ([\d.]+) GiB \((\w+)\)", capsys.readouterr().out)
    assert said and float(said[1]) > 0 and not (tmp_path / "run").exists()
    if device.type == "cpu":
        assert said[3] == "resident" and 0.1 < float(said[2]) < 10
        return
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    train(recipe, tmp_path / "run")
    peak = torch.cuda.max_memory_allocated() / 2**30
    assert said[3] == "GPU" and abs(float(said[2]) - peak) <= 0.1 * peak + 0.01
