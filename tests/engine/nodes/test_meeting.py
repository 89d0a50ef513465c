"""Nodes and processes that cannot meet are named, with host and port, in place of a store that times out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import free_port
from tiny import tiny_recipe

from unlabeled.cli.main import main
from unlabeled.engine import launch
from unlabeled.engine.nodes.meeting import meet
from unlabeled.errors import NodeError, UserError

ROOT = Path(__file__).parents[3]


def test_nodes_meet() -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        assert [*pool.map(lambda node: meet(node, 3, "127.0.0.1", port, 20), range(3))] == [None] * 3


def test_the_first_node_names_who_did_not_come() -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        nodes = [pool.submit(meet, node, 4, "127.0.0.1", port, 2.0) for node in (0, 2)]
        with pytest.raises(UserError, match=r"come to 127.0.0.1:\d+ within 2 s: 1, 3; there are: 0 \(.+\), 2 \("):
            nodes[0].result()
        with pytest.raises(UserError, match="cannot reach node 0"):
            nodes[1].result()


def test_a_node_says_whom_it_cannot_reach() -> None:
    port = free_port()
    with pytest.raises(UserError, match=rf"node 1 \(.+\) cannot reach node 0 at 127.0.0.1:{port} within 0.3 s \("):
        meet(1, 2, "127.0.0.1", port, 0.3)
    with pytest.raises(UserError, match=r"cannot reach node 0 at no\.such\.host.*MASTER_ADDR=ADDRESS"):
        meet(1, 2, "no.such.host.invalid", port, 0.3)


def test_an_address_that_is_not_this_machines_own_is_listened_for_everywhere() -> None:
    """The others reach it under an address of theirs."""
    port = free_port()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, 0, 2, "192.0.2.1", port, 20)
        meet(1, 2, "127.0.0.1", port, 20)
        assert first.result() is None


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}: Address already in use"):
            meet(0, 2, "127.0.0.1", port, 0.3)


def test_meeting_needs_no_torch() -> None:
    """Scripts of jobs meet before anything else is started."""
    code = ("import sys\nfor name in ('torch', 'numpy', 'accelerate'): sys.modules[name] = None\n"
            "from unlabeled.engine.nodes.meeting import main; sys.exit(main())")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ssl"), "SLURM_NODEID": "0", "NODES": "1",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_a_rank_that_cannot_reach_the_first_says_so_itself(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    port = free_port()
    for key, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port), "SLURMD_NODENAME": "node7", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(launch, "MEETING", 0.3)
    with pytest.raises(NodeError, match=rf"rank 1 on node7 cannot reach rank 0 at 127.0.0.1:{port} within 0.3 s"):
        launch.start(tiny_recipe("simclrv2", "plain").train)
    assert main(["pretrain", "demo/simclrv2", "run=/proc/none"]) == 2
    assert "rank 1 on node7 cannot reach rank 0" in capsys.readouterr().err


@pytest.mark.parametrize(("visible", "processes", "slurm", "refused"), [
    (8, 8, "8", None), (8, 8, None, None), (0, 2, None, None), (1, 1, "8", None),
    (7, 8, "8", "node7 shows 7 GPUs, but its processes .8. need"),
    (1, 2, None, "node7 shows 1 GPUs, but its processes .2. need"),
    (0, 1, "2", "node7 shows 0 GPUs, but its processes .1. need"),
])  # fmt: skip
def test_gpus_that_are_missing_are_named_once_per_node(
    monkeypatch: pytest.MonkeyPatch, visible: int, processes: int, slurm: str | None, refused: str | None
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", slurm)
    if refused is None:
        launch.refuse_few_gpus(visible)
        return
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(NodeError, match=refused):
        launch.refuse_few_gpus(visible)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError) as other:
        launch.refuse_few_gpus(visible)
    assert not isinstance(other.value, NodeError)
