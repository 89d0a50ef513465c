"""What all processes of a run must agree on, compared before anything is written: with a node named, and a cure.

Else a run trains on with what one node has, or ends hours later in words of torch's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

import unlabeled
from unlabeled.config.recipe import Recipe
from unlabeled.engine.nodes.meeting import node_name
from unlabeled.engine.run.checkpoint import Checkpoints
from unlabeled.engine.run.record import versions
from unlabeled.engine.run.same_recipe import flat
from unlabeled.errors import UserError
from unlabeled.ops.distributed import rank, world
from unlabeled.ops.machine.files import temporary

SKEW = 30.0  # seconds that clocks may differ; a network file system's times would tell nothing then
SHOWN = 65.0  # seconds in which a network file system shows what another node has written
_GIB = 2**30


@dataclass(frozen=True)
class Facts:
    """What a process sees; code and data are looked at by the first of a node alone, None of the others.

    code: file -> checksum. data: as `data_record` gives it, by dotted key.
    """

    rank: int
    node: str
    clock: float
    versions: dict[str, str]
    recipe: dict[str, Any]
    code: dict[str, str] | None = None
    data: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}"


def preflight(recipe: Recipe, folder: Path, data: Callable[[], dict[str, Any]]) -> None:
    """Compare all processes with the first, and try the run's folder from every node; call it on all ranks.

    Nothing is done for one process outside of SLURM. Raises UserError, on all ranks, with a line for every difference.
    """
    if not needed():
        return
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    code, kept = (code_sums(), flat(data())) if first or rank() == 0 else (None, None)
    gathered(None)  # from here on all are at the same moment
    facts = Facts(rank(), node_name(), time.time(), versions(), flat(recipe.model_dump(mode="json")), code, kept)
    problems = differences(gathered(facts)) or _try_folder(folder, first)
    if problems:
        raise UserError("\n".join(problems))


def needed() -> bool:
    """Return whether the run has processes, or nodes, that may differ."""
    return world() > 1 or "SLURM_JOB_ID" in os.environ


def gathered(item: Any) -> list[Any]:
    """Return the items of all ranks, in their order."""
    if world() == 1:
        return [item]
    items = [None] * world()
    dist.all_gather_object(items, item)
    return items


def code_sums() -> dict[str, str]:
    """Return the checksum of every file of this package's code."""
    root = Path(unlabeled.__file__).parent
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            for path in sorted(root.rglob("*.py"))}


def differences(facts: Sequence[Facts]) -> list[str]:
    """Return a line per kind of difference from the first process, with the first process that has it."""
    lines: dict[str, str] = {}
    for other in facts[1:]:
        for kind, line in _differences(facts[0], other):
            lines.setdefault(kind, line)
    return list(lines.values())


def _differences(one: Facts, other: Facts) -> Iterator[tuple[str, str]]:
    skew = other.clock - one.clock
    if abs(skew) > SKEW:
        way = "ahead of" if skew > 0 else "behind"
        yield "clock", (f"the clock of {other} is {abs(skew):.0f} s {way} that of {one}: let all nodes follow "
                        "one time server (chrony, ntp)")
    if key := _first(one.versions, other.versions):
        yield "versions", (f"{other} has {key} {other.versions.get(key)}, {one} has {one.versions.get(key)}: use the "
                           "same environment on all nodes")
    if other.code is not None and one.code is not None and (key := _first(one.code, other.code)):
        number = sum(one.code.get(name) != other.code.get(name) for name in one.code.keys() | other.code.keys())
        yield "code", (f"{other} has other code of unlabeled than {one} ({number} files, such as {key}): use one "
                       "installation or clone on all nodes, and change nothing in it while jobs start")
    if key := _first(one.recipe, other.recipe):
        values = [facts.recipe.get(key, "absent") for facts in (other, one)]
        yield "recipe", (f"{other} has {key} {values[0]}, {one} has {values[1]}: start all with the same command "
                         "and recipe")
    if other.data is not None and one.data is not None and (key := _first(one.data, other.data)):
        stream, _, what = key.partition(".")
        said = f"{other.data.get(key)} samples, not {one.data.get(key)}" if what == "n" else f"another '{what}'"
        yield "data", (f"{other} sees other data in data.{stream} than {one}: {said}; give all nodes the same files, "
                       "and delete indexes that were kept of former ones")


def _first(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first key in which two differ; numbers of samples first, from which the others follow."""
    keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    return min(keys, key=lambda key: not key.endswith(".n"), default=None)


def _try_folder(folder: Path, first: bool) -> list[str]:
    """Return what is wrong with a run's folder that all nodes must see and be able to write."""
    mark = temporary(folder / f"meeting-{rank()}")
    try:
        problem = _written(mark) if first or rank() == 0 else ""
        marks = gathered((node_name(), mark.name, problem))
        problems = [text for *_, text in marks if text]
        if not problems and first and not _shown(folder / marks[0][1]):
            problem = (f"run={folder} is not shared: {node_name()} does not see what {marks[0][0]} wrote there; name a "
                       "folder on a file system of all nodes")
        return problems or [text for text in gathered(problem) if text]
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)


def _written(mark: Path) -> str:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        return (f"{node_name()} cannot write in run={mark.parent}: {error.strerror}; every node may be the first after "
                "a restart: mend it there, or name another folder")
    return ""


def _shown(mark: Path) -> bool:
    end = time.monotonic() + SHOWN
    while not mark.exists():
        if time.monotonic() > end:
            return False
        time.sleep(min(1.0, SHOWN / 10))
    return True


def refuse_small_disk(checkpoints: Checkpoints, method: nn.Module, optimizer: Optimizer) -> None:
    """Raise UserError if the checkpoints to come do not fit on the disk, where several processes would lose their time.
    """
    if not needed():
        return
    size = checkpoint_size(method, optimizer)
    standing = min(len(checkpoints.complete()), checkpoints.keep)
    count = checkpoints.keep + 1 - standing  # a new one is written before an old one goes
    folder = checkpoints.folder.parent
    free = shutil.disk_usage(folder).free
    if free < count * size:
        raise UserError(
            f"the disk of {folder} has {free / _GIB:.1f} GiB free, as {node_name()} sees it, but {count} checkpoints "
            f"to come need about {count * size / _GIB:.1f} GiB (train.keep and the one that is being written): free "
            "some, or name another folder by run=FOLDER"
        )


def checkpoint_size(method: nn.Module, optimizer: Optimizer) -> int:
    """Return about how many bytes a checkpoint takes; before the first update the optimizer's part is a guess."""
    state = _bytes(method.state_dict().values())
    slots = [value for own in optimizer.state.values() for value in own.values()]
    weights = _bytes(parameter for group in optimizer.param_groups for parameter in group["params"])
    moments = 2 if any("betas" in group for group in optimizer.param_groups) else 1  # Adam and its kin keep two
    return state + (_bytes(slots) if slots else moments * weights)


def _bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))
