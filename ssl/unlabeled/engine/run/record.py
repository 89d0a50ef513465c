"""`run.json`: what a run is, and by which commands, where and from which update on it was trained."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unlabeled import __version__
from unlabeled.errors import UserError
from unlabeled.ops.distributed import world
from unlabeled.ops.machine.files import read_json

NAME = "run.json"
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pydantic")


def read_record(run: Path) -> dict[str, Any]:
    """Return `run.json` of a run: id, info, data and starts; of a run begun before starts were kept, one start.

    Raises UserError if it is missing or of another form.
    """
    file = run / NAME
    cure = "give the run's own command again, which writes it anew"
    try:
        record = read_json(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}; {cure}") from error
    except ValueError:
        raise UserError(f"{file} is damaged: it is no JSON; {cure}") from None
    if not isinstance(record, dict) or not isinstance(record.get("info"), dict):
        raise UserError(f"{file} is damaged: 'info' is missing; {cure}")
    starts = record.get("starts")
    if starts is None:
        first = {key: value for key, value in record.items() if key not in ("info", "data", "id")}
        starts = [{**first, "update": 0}] if first else []
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise UserError(f"{file} is damaged: 'starts' is no list of starts; {cure}")
    for key in ("data", "id"):
        if not isinstance(record.get(key), {"data": dict, "id": str}[key] | None):
            raise UserError(f"{file} is damaged: '{key}' is {record[key]!r}; {cure}")
    return {"id": record.get("id"), "info": record["info"], "data": record.get("data"), "starts": starts}


def new_id() -> str:
    """Return an identifier that no other run has."""
    return uuid.uuid4().hex[:16]


def this_start(update: int, workers: int) -> dict[str, Any]:
    """Describe the start that trains from `update` on: command, code, versions, machine, processes."""
    return {
        "update": update,
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "unlabeled": __version__,
        "commit": _commit(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: number for name, number in versions().items() if name != "python"},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": world(),
        "workers": workers,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that numbers depend on."""
    known = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = "absent"
    return known


def what_changed(before: dict[str, Any], now: dict[str, Any], streamed: list[str]) -> list[str]:
    """Say what differs from an earlier start so that bits will: processes, workers of streams."""
    lines = []
    was, is_now = before.get("processes"), now["processes"]
    if was is not None and was != is_now:
        lines.append(f"{_processes(is_now)} where the run had {_processes(was)}: sums are taken in another order, so "
                     "that it goes on equal but for rounding")
    keys = ("processes", "workers")
    if streamed and any(before.get(key) not in (None, now[key]) for key in keys):
        text = ", ".join(f"{key} {before.get(key)} before, {now[key]} now" for key in keys)
        lines.append(f"{' and '.join(f'data.{name}' for name in streamed)} is streamed, and its order depends on these "
                     f"numbers ({text}): from here on its samples come in another order")
    return lines


def refuse_rescale(run: Path, starts: Sequence[Mapping[str, Any]], processes: int) -> None:
    """Raise UserError if a run goes on with another number of processes than it was last trained by."""
    was = starts[-1].get("processes") if starts else None
    if was not in (None, processes):
        raise UserError(f"{run} was trained by {_processes(was)}, and now there {'is' if processes == 1 else 'are'} "
                        f"{processes}: start it with {was}, or go on with train.allow_rescale=true, with the same "
                        "batches in the same order, equal but for rounding")


def _processes(count: Any) -> str:
    return f"{count} process{'es' * (count != 1)}"


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run(["git", "-C", here, "diff", "--quiet", "HEAD"], capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("-dirty" if dirty.returncode else "") if head.returncode == 0 else None
