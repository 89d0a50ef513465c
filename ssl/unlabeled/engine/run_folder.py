"""The folder of one run: what was asked, where it ran, its metrics, and whether it may be gone on with."""

from __future__ import annotations

import datetime
import json
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unlabeled import __version__
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.config.write import to_yaml
from unlabeled.config.yaml_lines import parse_file
from unlabeled.engine.checkpoint import disk_error, write_atomically
from unlabeled.engine.run_lock import RunLock
from unlabeled.errors import UserError
from unlabeled.ops.distributed import world

# what may change between a start and its resume without changing what is learned
_FREE = (
    "train.nonfinite",
    "data.workers",
    "train.processes",
    "train.patience",
    "train.checkpoint_every",
    "train.keep",
    "train.log_every",
    "train.sinks",
    "eval.",
)
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pydantic")


class RunFolder:
    """Paths and small files of a run; everything but reading happens on rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.metrics = path / "metrics.jsonl"
        self.corrupt = path / "corrupt.jsonl"
        self.done = path / "DONE"
        self.requeue = path / "REQUEUE"
        self.lock = RunLock(path)

    def open(self, recipe: Recipe, info: dict[str, Any], fresh: bool) -> None:
        """Create the folder, or check that what stands there is the same run; without a checkpoint it is none yet.

        Raises UserError, with the keys that differ, if the folder holds a run of another recipe, and if another start
        is at work in it.
        """
        self.lock.take()
        if fresh and self.lock.held:
            if any(entry.name != self.lock.file.name for entry in self.path.iterdir()):
                self._set_aside()
            self.lock.release()
        self.enter()
        resolved = recipe.model_dump(mode="json")
        existing = self.path / "recipe.yaml"
        if existing.exists() and any(self.checkpoints.glob("update-*.json")):
            _refuse_other_recipe(self.path, _dumped(existing), resolved)
        self.requeue.unlink(missing_ok=True)
        self.write("recipe.yaml", to_yaml(recipe))
        self.write("run.json", json.dumps({**_environment(), **info}, indent=1))

    def enter(self) -> None:
        """Create the folder and lock it. Raises UserError if another start is at work in it, or it cannot be made."""
        self.lock.take(make=True)

    def write(self, name: str, text: str) -> None:
        """Write a small text file atomically."""
        self.write_bytes(name, text.encode("utf-8", "surrogateescape"))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda file: file.write(data))

    def append(self, file: Path, lines: list[dict[str, Any]]) -> None:
        """Append JSON lines to `file`."""
        try:
            with open(file, "a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise disk_error(file, error) from error

    def read_lines(self, file: Path) -> list[dict[str, Any]]:
        """Return the JSON lines of `file`; a last line cut off by a crash is left out."""
        if not file.exists():
            return []
        lines = []
        for line in file.read_text("utf-8", "replace").split("\n"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def cut_back(self, update: int) -> None:
        """Drop what `metrics.jsonl` and `corrupt.jsonl` say of updates from `update` on: they are done again."""
        for file in (self.metrics, self.corrupt):
            lines = self.read_lines(file)
            if lines:
                kept = [line for line in lines if line["update"] < update]
                self.write(file.name, "".join(json.dumps(line) + "\n" for line in kept))

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.replaced-{number}")).exists():
            number += 1
        try:
            os.replace(self.path, aside)
        except OSError as error:
            raise disk_error(aside, error) from error
        print(f"fresh=true: the earlier run now stands in {aside}")


def _dumped(file: Path) -> dict[str, Any]:
    """Return the recipe of a file; options that came after it was written have their defaults."""
    try:
        return read_recipe(file).model_dump(mode="json")
    except UserError:  # written by another version, or by hand: what differs is shown as it stands there
        return parse_file(file).value


def _refuse_other_recipe(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    before, now = _flat(old), _flat(new)
    lines = [
        f"  {key}: {before.get(key, 'absent')} there, {now.get(key, 'absent')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_FREE) and not key.endswith(".root")
    ]
    if lines:
        raise UserError(
            f"{path} holds a run of another recipe:\n"
            + "\n".join(lines)
            + "\nUse another folder (run=FOLDER), or fresh=true to set that run aside and start anew"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, sub in tree.items() for key, value in _flat(sub, f"{prefix}{name}.").items()}


def _environment() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "unlabeled": __version__,
        "commit": _commit(),
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": world(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run(["git", "-C", here, "diff", "--quiet", "HEAD"], capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() + ("-dirty" if dirty.returncode else "") if found.returncode == 0 else None
