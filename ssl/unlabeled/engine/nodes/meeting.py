"""Whether the nodes of a job reach the first one, and a process its first one, asked before a launcher or torch is.

These say of a node that never came, in a traceback and after long, that a store timed out. Imports no torch: job
scripts run `python -m unlabeled.engine.nodes.meeting` on every node.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time

from unlabeled.errors import NodeError, UserError

PATIENCE = 120.0  # seconds; nodes do not start at the same moment
_CURE = ("the names must be known and the port open between the nodes; MASTER_ADDR=ADDRESS in the environment names "
         "another interface of the first node")


def meet(node: int, nodes: int, address: str, port: int, patience: float = PATIENCE) -> None:
    """Let node 0 listen at address:port until all others have come, and say so to them.

    Raises UserError, naming who did not come, or where nobody was reached.
    """
    if node == 0:
        _receive(nodes, address, port, patience)
    else:
        _visit(node, address, port, patience)


def _receive(nodes: int, address: str, port: int, patience: float) -> None:
    end, visitors, here = time.monotonic() + patience, {0: node_name()}, f"{address}:{port}"
    try:
        door = _open(address, port, nodes)
    except OSError as error:
        raise UserError(f"node 0 ({visitors[0]}) cannot listen on port {port}: {error.strerror}; another job may use "
                        "it: submit this one again, which takes another port") from error
    with door:
        connections = []
        while len(visitors) < nodes:
            door.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = door.accept()
                connection.settimeout(max(0.01, end - time.monotonic()))
                number, _, name = connection.makefile("r", encoding="utf-8", errors="replace").readline().partition(" ")
                visitors[int(number)] = name.strip()
                connections.append(connection)
            except TimeoutError:
                absent = ", ".join(str(one) for one in range(nodes) if one not in visitors)
                there = ", ".join(f"{one} ({name})" for one, name in sorted(visitors.items()))
                raise UserError(f"nodes that did not come to {here} within {patience:g} s: {absent}; there are: "
                                f"{there}. {_CURE[0].upper()}{_CURE[1:]}") from None
            except (OSError, ValueError):  # somebody else's call
                continue
        for connection in connections:
            with connection:
                connection.sendall(b"welcome\n")
                connection.settimeout(5)
                connection.recv(1)  # the visitor leaves first, so that the port is free at once


def _open(address: str, port: int, nodes: int) -> socket.socket:
    """Listen at the address alone; where it is none of this machine's, behind a translation perhaps, on all."""
    try:
        return socket.create_server((address, port), backlog=nodes)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL and not isinstance(error, socket.gaierror):
            raise
        return socket.create_server(("", port), backlog=nodes)


def _visit(node: int, address: str, port: int, patience: float) -> None:
    end, reason = time.monotonic() + patience, ""
    while time.monotonic() < end:
        try:
            with socket.create_connection((address, port), timeout=max(0.01, end - time.monotonic())) as connection:
                connection.sendall(f"{node} {node_name()}\n".encode())
                if connection.recv(16):
                    return
                reason = "it closed the connection"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise UserError(f"node {node} ({node_name()}) cannot reach node 0 at {address}:{port} within "
                    f"{patience:g} s ({reason}): {_CURE}")


def reach(address: str, port: int, patience: float) -> None:
    """Wait until the first process of a launch listens at address:port.

    Raises NodeError, which every process says for itself, with both hosts and the port, if it never does.
    """
    end, reason = time.monotonic() + patience, ""
    while time.monotonic() < end:
        try:
            socket.create_connection((address, port), timeout=max(0.01, end - time.monotonic())).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.1)
    raise NodeError(f"rank {os.environ.get('RANK')} on {node_name()} cannot reach rank 0 at {address}:{port} within "
                    f"{patience:g} s ({reason}): was it started, with this address and port (MASTER_ADDR, "
                    "MASTER_PORT)? The name must be known and the port open between the nodes")


def node_name() -> str:
    """Return what this machine is called, by SLURM if it knows it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main() -> int:
    """Meet as the environment of the job says, and return the exit code."""
    try:
        meet(int(os.environ["SLURM_NODEID"]), int(os.environ["NODES"]), os.environ["MASTER_ADDR"],
             int(os.environ["MASTER_PORT"]))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
