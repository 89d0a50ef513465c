"""What differs between nodes is named before the first update: two gloo processes, one with another fact."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from processes import run_processes
from tiny import tiny_recipe

from unlabeled.engine.nodes import preflight as module
from unlabeled.engine.nodes.preflight import checkpoint_size, code_sums, preflight, refuse_small_disk
from unlabeled.engine.run.checkpoint import Checkpoints
from unlabeled.engine.run.record import versions
from unlabeled.engine.train import train
from unlabeled.errors import UserError

DATA = {"train": {"n": 120, "classes": 10, "traces": "b"}}

# what node2 is told -> what all must then say
CASES = {
    "nothing": None,
    "clock": "the clock of rank 1 on node2 is 3600 s behind that of rank 0 on node1: let all nodes",
    "versions": "rank 1 on node2 has torch 1.0, rank 0 on node1 has",
    "code": "rank 1 on node2 has other code of unlabeled than rank 0 on node1 (1 files, such as ops/ema.py)",
    "recipe": "rank 1 on node2 has optim.lr.base 9.0, rank 0 on node1 has 4.0: start all with the same command",
    "samples": "rank 1 on node2 sees other data in data.train than rank 0 on node1: 119 samples, not 120",
    "traces": "rank 1 on node2 sees other data in data.train than rank 0 on node1: another 'traces'",
    "elsewhere": "is not shared: node2 does not see what node1 wrote there; name a folder on",
    "unwritable": "node2 cannot write in run=",
}


def told(rank: int, folder: Path) -> dict[str, str | None]:
    """Return what every case raises on this rank."""
    os.environ.update(LOCAL_RANK="0", SLURMD_NODENAME=f"node{rank + 1}")
    return {case: refused(case if rank else "nothing", folder / case) for case in CASES}


def refused(case: str, folder: Path) -> str | None:
    recipe, data, run = tiny_recipe("simclrv2", "plain"), DATA, folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHOWN", 0.3)
        match case:
            case "clock":
                patch.setattr(module.time, "time", lambda now=time.time: now() - 3600)
            case "versions":
                known = {**versions(), "torch": "1.0"}
                patch.setattr(module, "versions", lambda: known)
            case "code":
                sums = {**code_sums(), "ops/ema.py": "0"}
                patch.setattr(module, "code_sums", lambda: sums)
            case "recipe":
                recipe = tiny_recipe("simclrv2", "plain", ["optim.lr.base=9"])
            case "samples":
                data = {"train": {"n": 119, "classes": 9, "traces": "d"}}
            case "traces":
                data = {"train": {**DATA["train"], "traces": "other"}}
            case "elsewhere":
                run = folder / "of-this-node"
            case "unwritable":
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "file").touch()
                run = folder / "file" / "run"
        try:
            preflight(recipe, run, lambda: data)
        except UserError as error:
            return str(error)
    return None


def test_every_difference_is_named_on_all_ranks_with_node_and_cure(tmp_path: Path) -> None:
    first, second = run_processes(2, told, tmp_path)
    assert first == second
    for case, message in CASES.items():
        assert (first[case] is None) if message is None else message in (first[case] or ""), (case, first[case])
        assert len((first[case] or "").splitlines()) <= 1
    assert [*tmp_path.rglob("*.tmp")] == [], "nothing is left behind"


def alone(rank: int, folder: Path) -> None:
    """Train where the second process has another clock: nothing may be written."""
    os.environ.update(LOCAL_RANK="0")
    if rank:
        module.time.time = lambda now=time.time: now() + 100
    with pytest.raises(UserError, match="100 s ahead of"):
        train(tiny_recipe("rotnet", "all"), folder)


def test_a_run_that_is_refused_has_written_nothing(tmp_path: Path) -> None:
    run_processes(2, alone, tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_one_process_outside_of_slurm_is_compared_with_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    preflight(tiny_recipe("rotnet", "all"), tmp_path / "run", lambda: pytest.fail("data is read for nothing"))
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_do_not_fit_are_refused_before_the_first_update(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 1000))
    with pytest.raises(UserError, match=r"as node7 sees it, but 3 checkpoints to come need about .* run=FOLDER"):
        train(tiny_recipe("rotnet", "all"), tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 10**9))
    assert train(tiny_recipe("rotnet", "all"), tmp_path / "run").finished


@pytest.mark.parametrize(("make", "slots"), [
    (lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9), 1), (torch.optim.AdamW, 2),
])  # fmt: skip
def test_the_size_of_a_checkpoint(make, slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Linear(1000, 100, bias=False)
    optimizer = make(network.parameters())
    guess = checkpoint_size(network, optimizer)
    assert guess == (1 + slots) * 400_000
    network(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    assert checkpoint_size(network, optimizer) == pytest.approx(guess, rel=1e-4)
    # what stands already is replaced: one more at a time
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, guess + 1000))
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    with pytest.raises(UserError, match="but 3 checkpoints"):
        refuse_small_disk(checkpoints, network, optimizer)
    for update in (1, 2):
        checkpoints.save(update, {"update": update})
    refuse_small_disk(checkpoints, network, optimizer)
