"""Refusing to start as something else than was asked for."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from processes import free_port
from tiny import tiny_recipe

from unlabeled.engine import launch
from unlabeled.engine.plan import make_plan
from unlabeled.errors import UserError


def test_too_few_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    train = tiny_recipe("simclrv2", "plain", ["train.processes=2"]).train
    with pytest.raises(UserError, match=r"train\.processes asks for 2 processes, but 1 came together"):
        launch.start(train)
    # torchrun without ACCELERATE_USE_CPU on a machine without a GPU: every rank would silently train alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the launcher started 2 processes, but 1 came together"):
        launch.start(train.model_copy(update={"processes": None}))


@pytest.mark.parametrize(("amx", "asked", "given"), [
    (True, "auto", "bf16"), (False, "auto", "no"), (True, "fp32", "no"), (False, "bf16", "bf16"),
])  # fmt: skip
def test_automatic_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch, amx: bool, asked: str, given: str) -> None:
    monkeypatch.setattr(launch, "_has_amx", lambda: amx)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    train = tiny_recipe("simclrv2", "plain", [f"train.precision={asked}"]).train
    assert launch.start(train).mixed_precision == given


def test_lengths_that_cannot_be_are_refused() -> None:
    recipe = tiny_recipe("simclrv2", "plain")
    with pytest.raises(UserError, match="holds only 23 samples"):
        make_plan(recipe, "train", 23, 1)
    with pytest.raises(UserError, match="24 does not divide into 5 processes"):
        make_plan(recipe, "train", 100, 5)
    with pytest.raises(UserError, match="warmup_epochs 3 are 12 updates, but the run has only 6"):
        make_plan(tiny_recipe("simclrv2", "plain", ["optim.warmup_epochs=3"]), "train", 100, 1)


def test_the_plan_counts_whole_batches() -> None:
    plan = make_plan(tiny_recipe("simclrv2", "plain", ["train.updates=null", "train.epochs=3"]), "train", 100, 2)
    assert (plan.updates_per_epoch, plan.total, plan.batch_per_process, plan.epochs) == (4, 12, 12, 3)


def listening() -> set[tuple[str, int]]:
    """Return address and port of every socket of this process at which others may knock."""
    mine = {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if Path(entry.path).is_socket()}
    places = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in mine:
                address, port = words[1].split(":")
                packed = b"".join(struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8))
                family = socket.AF_INET if table == "tcp" else socket.AF_INET6
                places.add((socket.inet_ntop(family, packed), int(port, 16)))
    return places


def joined(rank: int, port: int, folder: str) -> None:
    """Start as one of two processes of this machine, and write down at what it listens."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
                      WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", ACCELERATE_USE_CPU="true")
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    accelerator = launch.start(tiny_recipe("rotnet", "all").train)
    accelerator.wait_for_everyone()
    (Path(folder) / str(rank)).write_text("\n".join(f"{address} {port}" for address, port in listening()))
    accelerator.wait_for_everyone()
    accelerator.end_training()


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="no /proc")
def test_processes_of_one_machine_listen_on_loopback_alone(tmp_path: Path) -> None:
    port = free_port()
    mp.start_processes(joined, (port, str(tmp_path)), nprocs=2, start_method="forkserver")
    for rank in "01":
        places = [line.split() for line in (tmp_path / rank).read_text().splitlines()]
        own = [address for address, number in places if int(number) != port]  # torch's store listens everywhere
        assert own and all(address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for address in own), places


@pytest.mark.parametrize(("here", "everywhere", "before", "after"), [
    ("2", "2", None, "lo"), ("2", "4", None, None), (None, "2", None, None), ("2", "2", "eth0", "eth0"),
])  # fmt: skip
def test_the_interface_of_gloo_is_chosen_where_nobody_is_elsewhere(
    here: str | None, everywhere: str, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    for name, value in (("LOCAL_WORLD_SIZE", here), ("WORLD_SIZE", everywhere), ("GLOO_SOCKET_IFNAME", before)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    launch._stay_on_this_machine()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == after
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
