"""The earlier runs that a run starts from: their exports checked by hash, and the copies that the run keeps of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unlabeled.config.sources import copy_of, split_source
from unlabeled.engine.run.checkpoint import anew
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0
from unlabeled.ops.machine.files import disk_error, sha256, temporary

_SUMS = "SHA256SUMS"  # of a copy; it is written last
_AGAIN = "give the command of that run again, which writes it from its last checkpoint"


def export_problem(run: Path, name: str) -> str | None:
    """Say what is wrong with an export of `run`, None if nothing: it must be there and have the hash in its .json.

    Exports written before hashes were kept are taken as they are.
    """
    file = run / "export" / f"{name}.safetensors"
    if not file.is_file():
        return f"{file} is missing"
    try:
        about = _about(run, name)
        stated = about.get("sha256")
        digest = sha256(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"{file} cannot be read: {reason}"
    if stated is None:
        return None if _has_header(file) else f"{file} is damaged: it ends too early, or begins with something else"
    return None if stated == digest else f"{file} is damaged: its hash differs from the one in {name}.json"


def _has_header(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except SafetensorError:
        return False


def refuse_bad_export(run: Path, name: str) -> Path:
    """Return the file of an export. Raises UserError if it is missing or damaged, with the cure."""
    problem = export_problem(run, name)
    if problem is None:
        return run / "export" / f"{name}.safetensors"
    if problem.endswith("missing"):
        raise UserError(f"{run} has not finished its exports: {problem}; start its command again, which goes on")
    raise UserError(f"{problem}; {_AGAIN}")


def digests(run: Path) -> dict[str, str] | None:
    """Return the hash of every export of a run by name; None if there are none. Equal ones mean the same networks."""
    sums: dict[str, str] = {}
    try:
        for file in sorted((run / "export").glob("*.safetensors")):
            sums[file.stem] = str(_about(run, file.stem).get("sha256") or sha256(file))
    except (OSError, ValueError):
        return None
    return sums or None


def _about(run: Path, name: str) -> dict[str, Any]:
    beside = run / "export" / f"{name}.json"
    try:
        about = json.loads(beside.read_bytes())
    except ValueError:
        raise ValueError(f"{beside.name} is no JSON") from None
    if not isinstance(about, dict):
        raise ValueError(f"{beside.name} holds something else")
    return about


def adopt(source: str, run: Path) -> str:
    """Copy what `load_export` needs of a finished run into RUN/sources, once, and return the copy as a source.

    A copy is checked; a damaged or incomplete one is made anew. A source that is no finished run is returned as it is,
    for `load_export` to refuse. Raises UserError if a copy is damaged and cannot be made anew.
    """
    origin, name = split_source(source)
    copy = copy_of(source, run)
    if on_rank0(lambda: _copied(origin, copy)):
        return str(copy) if name is None else f"{copy}:{name}"
    return source


def _copied(origin: Path, copy: Path) -> bool:
    """Return whether a good copy is there; an unfinished run is not copied, for it would stay unfinished."""
    there = copy.exists() or copy.is_symlink()  # a link that leads nowhere stands in the way too
    problem = _copy_problem(copy) if there else None
    if there and problem is None:
        return True
    if not (origin / "DONE").exists():
        if problem is None:
            return False
        raise UserError(f"the copy {copy} of an earlier run is incomplete or damaged ({problem}), and {origin} is not "
                        f"there to copy it again: bring that run back there, or {anew(copy.parents[1])}")
    try:
        _copy(origin, copy)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and problem is None:
            return False  # a run that is only read: the origin will do
        raise disk_error(copy, error) from error
    return True


def _copy(origin: Path, copy: Path) -> None:
    for name in sorted(file.stem for file in (origin / "export").glob("*.safetensors")):
        refuse_bad_export(origin, name)
    partial = temporary(copy)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in ("recipe.yaml", "run.json"):
        shutil.copyfile(origin / file, partial / file)
    for folder in ("export", "sources"):
        if (origin / folder).is_dir():
            shutil.copytree(origin / folder, partial / folder)
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    sums = "".join(f"{sha256(file)}  {file.relative_to(partial).as_posix()}\n" for file in files)
    with open(partial / _SUMS, "w") as stream:
        stream.write(sums)
        stream.flush()
        os.fsync(stream.fileno())
    if copy.is_dir() and not copy.is_symlink():
        shutil.rmtree(copy)
    else:
        copy.unlink(missing_ok=True)
    partial.rename(copy)


def _copy_problem(copy: Path) -> str | None:
    """Say what is wrong with a copy, None if nothing; in copies made before sums were kept only exports are checked."""
    try:
        if (copy / _SUMS).exists():
            lines = [line.split("  ", 1) for line in (copy / _SUMS).read_text().splitlines()]
            bad = [name for total, name in lines if not (copy / name).is_file() or sha256(copy / name) != total]
            return f"{bad[0]} is missing or differs" if bad else None
        missing = [name for name in ("recipe.yaml", "run.json", "export") if not (copy / name).exists()]
        if missing:
            return f"{missing[0]} is missing"
        names = sorted({file.stem for file in (copy / "export").glob("*.*")})
        return next((problem for name in names if (problem := export_problem(copy, name))), None)
    except (OSError, ValueError) as error:
        return str(error)
