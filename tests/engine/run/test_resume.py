"""Runs of the real command that are killed, interrupted or damaged, and go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import free_port, lock_held_by_another

from unlabeled.engine.run.lock import RunLock
from unlabeled.errors import UserError

ROOT = Path(__file__).parents[3]
UPDATES = 15  # three epochs of 60 images in batches of 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(60):
        low = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(low).resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg")
    return folder


def command(photos: Path, run: Path, processes: int, *extra: str) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--master_addr",
            "127.0.0.1",
            "--master_port",
            str(free_port()),
        ]
    return [
        *start,
        "pretrain.py",
        "recipes/demo/simclrv2-shapes.yaml",
        f"run={run}",
        "data.train.card=folder",
        f"data.train.root={photos}",
        "data.train.batch=12",
        "data.workers=1",
        "backbone.width=0.125",
        "method.crop.size=16",
        "train.epochs=3",
        "train.checkpoint_every=2",
        "train.log_every=1",
        "eval.every=1",
        "eval.at_end=[]",
        *extra,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def start(*args, **kwargs) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*args, **kwargs),
        cwd=ROOT,
        env=environment(),
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        out, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        for pid in [*descendants(process.pid), process.pid]:
            os.kill(pid, signal.SIGABRT)  # every process says where it stands (PYTHONFAULTHANDLER)
        raise AssertionError(f"the run hangs:\n{process.communicate()[0]}") from None
    assert process.returncode == code, out
    return out


def reached(run: Path, update: int, process: subprocess.Popen[str]) -> None:
    """Wait until `update` is in the metrics."""
    metrics = run / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and metrics.read_text().count("\n") > update:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"update {update} was not reached")


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (*descendants(child), child)]


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # an orphan that has ended may wait for a parent to take notice


def final(run: Path) -> tuple[dict[str, torch.Tensor], dict[int, float]]:
    assert (run / "DONE").exists()
    state = torch.load(run / "checkpoints" / f"update-{UPDATES:08d}.pt", weights_only=True)
    flat = {f"method.{k}": v for k, v in state["method"].items()}
    for index, slots in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(UPDATES)), "metrics are cut back to the checkpoint"
    return flat, {line["update"]: line["loss"] for line in lines}


def assert_same(run: Path, whole: Path) -> None:
    (state, losses), (expected, expected_losses) = final(run), final(whole)
    assert losses == expected_losses
    assert state.keys() == expected.keys()
    differing = [name for name in state if not torch.equal(state[name], expected[name])]
    assert not differing, f"not bit-identical: {differing}"
    exports = [folder / "export" / "backbone.safetensors" for folder in (run, whole)]
    assert exports[0].read_bytes() == exports[1].read_bytes()


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(photos, run, 1))
    return run


@pytest.mark.parametrize("update", [3, 8])  # in the first epoch, and in the middle of the second
def test_sigkill_and_resume_is_exact(photos: Path, whole: Path, tmp_path: Path, update: int) -> None:
    process = start(photos, tmp_path / "run", 1)
    reached(tmp_path / "run", update, process)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert "going on from update" in finish(start(photos, tmp_path / "run", 1))
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_sigkill_and_resume_is_exact_with_processes(photos: Path, tmp_path: Path, processes: int) -> None:
    finish(start(photos, tmp_path / "whole", processes))
    process = start(photos, tmp_path / "run", processes)
    reached(tmp_path / "run", 7, process)
    for pid in [*children(process.pid), process.pid]:  # the launcher gives its processes sessions of their own
        os.kill(pid, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    finish(start(photos, tmp_path / "run", processes))
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_when_the_launcher_is_killed_its_processes_save_and_a_new_start_waits_for_them(
    photos: Path, tmp_path: Path
) -> None:
    process = start(photos, tmp_path / "run", 2, "train.checkpoint_every=1000", "train.epochs=200")
    reached(tmp_path / "run", 4, process)
    ranks = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    again = start(photos, tmp_path / "run", 2, "train.checkpoint_every=1000", "train.epochs=200")
    try:
        while not (tmp_path / "run" / "REQUEUE").exists() and any(map(running, ranks)):
            time.sleep(0.02)
        assert (tmp_path / "run" / "REQUEUE").exists()
        newest = max(int(p.stem.removeprefix("update-")) for p in (tmp_path / "run" / "checkpoints").glob("*.pt"))
        reached(tmp_path / "run", newest + 2, again)
        assert not any(map(running, ranks))
    finally:
        os.kill(again.pid, signal.SIGTERM)
    assert f"going on from update {newest}" in finish(again, 1)  # torchrun itself ends with an error


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=r"is being trained by process [0-9]+ on .* use another folder")
    with lock_held_by_another(tmp_path) as holder, refused as said:
        RunLock(tmp_path).take(patience=0.3)
    assert f"process {holder} on" in str(said.value)
    lock = RunLock(tmp_path)
    lock.take(patience=0.3)
    assert lock.file.read_text().startswith(f"{os.getpid()} on ")
    lock.release()


def test_ctrl_c_saves_and_the_same_command_goes_on(photos: Path, whole: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "run", 1, "train.checkpoint_every=1000")
    reached(tmp_path / "run", 4, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to the loader processes too
    out = finish(process, 130)
    assert "SIGINT: saved after update" in out and "Traceback" not in out
    finish(start(photos, tmp_path / "run", 1))
    assert_same(tmp_path / "run", whole)


def test_a_run_goes_on_without_a_reader_and_without_the_worker_that_was_killed(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    reader, stdout = os.pipe()
    process = subprocess.Popen(
        command(photos, tmp_path / "run", 1), cwd=ROOT, env=environment(), text=True, stdout=stdout,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    os.close(stdout)
    assert os.read(reader, 1)
    os.close(reader)  # as `| head -1` does
    reached(tmp_path / "run", 3, process)
    for worker in children(process.pid):
        os.kill(worker, signal.SIGKILL)  # as the system does where memory is short
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in error
    assert "standard output: Broken pipe; going on without it" in error
    assert_same(tmp_path / "run", whole)


def test_ctrl_c_before_the_first_update_is_one_line(photos: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "run", 1)
    time.sleep(1.5)  # torch is being imported
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process, 130) == "interrupted\n"


def test_hup_and_a_stopped_worker(photos: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "run", 1, "train.checkpoint_every=1000", "train.epochs=200", "eval.every=0")
    reached(tmp_path / "run", 4, process)
    for worker in children(process.pid):
        os.kill(worker, signal.SIGSTOP)
    time.sleep(1)
    os.kill(process.pid, signal.SIGHUP)
    out = finish(process)
    assert "SIGHUP: saved after update" in out and "Traceback" not in out
    assert (tmp_path / "run" / "REQUEUE").exists()


def test_term_to_every_process_saves_too(photos: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "run", 1, "train.checkpoint_every=1000", "train.epochs=200")
    reached(tmp_path / "run", 4, process)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler sends it, to the loader processes too
    out = finish(process)
    assert "SIGTERM: saved after update" in out and "Traceback" not in out
    assert (tmp_path / "run" / "REQUEUE").exists()


def test_preemption_saves_on_all_ranks_and_asks_for_a_requeue(photos: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "run", 2, "train.checkpoint_every=1000", "train.epochs=200")
    reached(tmp_path / "run", 4, process)
    os.kill(children(process.pid)[0], signal.SIGUSR1)  # one rank hears it, all of them leave
    out = finish(process)
    assert "SIGUSR1: saved after update" in out
    assert (tmp_path / "run" / "REQUEUE").exists() and not (tmp_path / "run" / "DONE").exists()
    assert list((tmp_path / "run" / "checkpoints").glob("update-*.pt"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(photos: Path, whole: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "run", 1)
    reached(tmp_path / "run", 8, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = sorted((tmp_path / "run" / "checkpoints").glob("update-*.json"))[-1].with_suffix(".pt")
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    assert "is damaged" in finish(start(photos, tmp_path / "run", 1))
    assert_same(tmp_path / "run", whole)


def test_a_finished_run_says_so_and_another_recipe_is_refused(photos: Path, whole: Path) -> None:
    assert "is finished" in finish(start(photos, whole, 1))
    out = finish(start(photos, whole, 1, "optim.weight_decay=0.5"), 2)
    assert "optim.weight_decay: 0.0001 there, 0.5 now" in out and "Traceback" not in out
