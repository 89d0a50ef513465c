"""Jobs on a real SLURM of two nodes: told to save, preempted, queued again, finished, evaluated, shared, swept.

Every run is of two processes, one per node, which meet by way of the launcher.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data.toys import jpeg
from processes import run_processes
from slurm.rig import Rig
from tiny import tiny_case

from unlabeled.config.read import read_recipe
from unlabeled.engine.train import train

ROOT = Path(__file__).parents[2]
ALL = 4  # cores of a node, which a job may ask for to have it alone


def cli(rig: Rig, *arguments: str, code: int = 0) -> str:
    """Run the command as a user of the cluster does, in the folder that all nodes share."""
    environment = {**rig.environment, "PYTHONPATH": str(ROOT / "ssl"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "unlabeled.cli.main", *arguments], cwd=rig.folder, text=True,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert done.returncode == code, done.stdout
    return done.stdout


def submitted(rig: Rig, *arguments: str) -> list[str]:
    """Submit and return the numbers of the jobs."""
    return re.findall(r"^job (\d+):", cli(rig, "slurm", *arguments, "time=20", "submit=true"), re.MULTILINE)


def log(rig: Rig, job: str) -> str:
    return "".join(file.read_text() for file in (rig.folder / "runs" / "slurm").glob(f"*-{job}*.out"))


def trained(rig: Rig, run: str, update: int) -> None:
    """Wait until a run has done so many updates."""
    metrics = rig.folder / run / "metrics.jsonl"
    rig.until(lambda: metrics.exists() and metrics.read_text().count("\n") > update)


def weights(run: Path, update: int) -> dict[str, torch.Tensor]:
    assert (run / "DONE").exists()
    state = torch.load(run / "checkpoints" / f"update-{update:08d}.pt", weights_only=True)
    slots = {f"{index}.{name}": torch.as_tensor(value) for index, own in state["optimizer"]["state"].items()
             for name, value in own.items()}
    return {**state["method"], **slots}


def undisturbed(rank: int, method: str, variant: str, settings: list[str], run: Path) -> None:
    train(read_recipe(tiny_case(method, variant).recipe, settings), run)


def told(rig: Rig, job: str) -> None:
    rig.call("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@300 sends


def preempted(rig: Rig, job: str) -> None:
    rig.call("sbatch", "--partition=high", "--nodes=2", f"--ntasks-per-node={ALL}", "--output=/dev/null", "--wrap=true")


def queued_again(rig: Rig, job: str) -> None:
    rig.call("scontrol", "requeue", job)


# updates: two seconds or more on an idle machine, in which the run is told to end
@pytest.mark.parametrize(("method", "variant", "updates", "disturb"), [
    ("simclrv2", "plain", 120, told), ("simmatchv2", "plain", 60, queued_again), ("poa", "sinkhorn", 80, preempted),
])  # fmt: skip
def test_a_disturbed_run_goes_on_to_the_bits_of_another(
    rig: Rig, method: str, variant: str, updates: int, disturb: Callable[[Rig, str], None]
) -> None:
    case = tiny_case(method, variant)
    settings = case.settings([f"train.updates={updates}", "train.log_every=1", "train.checkpoint_every=20"])
    job, = submitted(rig, case.recipe, *settings, f"run=runs/{method}", "nodes=2", "processes=1", f"cpus={ALL}")
    evaluation, = submitted(rig, "evaluate", "knn", f"runs/{method}", "workers=0", f"after={job}")
    trained(rig, f"runs/{method}", 25 if disturb is queued_again else 3)  # which ends the run without a save, perhaps
    disturb(rig, job)
    run_processes(2, undisturbed, method, variant, settings, rig.folder / "runs" / f"{method}-whole")
    rig.until(lambda: "Restarts=1" in rig.call("scontrol", "show", "job", job))
    assert rig.state(evaluation) == "PENDING"
    rig.ended(job)
    said = log(rig, job)
    assert f"job {job}, start 2 on node[1-2], processes per node: 1" in said
    assert re.search(r"going on from update \d+", said), said
    run, whole = (weights(rig.folder / "runs" / name, updates) for name in (method, f"{method}-whole"))
    assert run.keys() == whole.keys()
    assert [name for name in run if not torch.equal(run[name], whole[name])] == []
    lines = (rig.folder / "runs" / method / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == updates
    rig.ended(evaluation)
    assert (rig.folder / "runs" / method / "eval" / f"knn-update{updates:08d}.json").exists(), log(rig, evaluation)


def test_a_job_that_is_cancelled_or_fails_is_not_queued_again_and_takes_along_what_follows(rig: Rig) -> None:
    case = tiny_case("simclrv2", "plain")
    run = [case.recipe, *case.settings(["train.log_every=1"]), "processes=1"]
    failing, = submitted(rig, *run, "run=runs/failing", "train.updates=3", "data.train.root=/nowhere",
                         "data.train.card=folder", "name=failing")
    after, = submitted(rig, "evaluate", "knn", "runs/failing", f"after={failing}")
    cancelled, = submitted(rig, *run, "run=runs/cancelled", "train.updates=100000", "name=cancelled")
    few, = submitted(rig, *run, "run=runs/few", "gpus=1", "name=few")
    rig.ended(failing, state="FAILED")
    rig.ended(after, state="CANCELLED")
    assert "/nowhere" in log(rig, failing)
    trained(rig, "runs/cancelled", 2)
    rig.call("scancel", cancelled)
    rig.ended(cancelled, state="CANCELLED")
    rig.ended(few, state="FAILED")  # SLURM's GPUs are none to torch here
    assert re.search(r"node\d shows 0 GPUs, but its processes \(1\) need", log(rig, few)), log(rig, few)
    for job in (failing, cancelled, few):
        assert "Restarts=0" in rig.call("scontrol", "show", "job", job)
        assert "queues itself again" not in log(rig, job)


def test_an_array_packs_in_parts(rig: Rig) -> None:
    for number in range(24):
        folder = rig.folder / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, 12))
    job, = submitted(rig, "pack", "photos", "packed", "shard_samples=3", "workers=0", "parts=4")
    cli(rig, "pack", "photos", "packed-at-once", "shard_samples=3", "workers=0")
    for number in range(1, 5):
        rig.ended(f"{job}_{number}")
    packed, whole = (
        {path.name: path.read_bytes() for path in (rig.folder / name).iterdir() if path.suffix != ".index"}
        for name in ("packed", "packed-at-once"))
    assert packed == whole and sum(name.endswith(".tar") for name in packed) == 8
    assert log(rig, job).count("use it: ") >= 1


def test_a_sweep_is_an_array_that_ends_in_one_table(rig: Rig) -> None:
    case = tiny_case("simclrv2", "plain")
    job, = submitted(rig, "sweep", case.recipe, *case.settings(["eval.at_end=[knn]", "train.updates=2"]),
                     "optim.lr.base=[1,2]", "train.seed=[0,1]", "parts=2", "cpus=2", "run=runs/swept")
    for number in (1, 2):
        rig.ended(f"{job}_{number}")
    lines = (rig.folder / "runs" / "swept" / "sweep.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [
        [f"base-{base}_seed-{seed}", base, seed] for base in "12" for seed in "01"]
    said = log(rig, job)
    assert "optim.lr.base" in said and "standard deviation over train.seed" in said
