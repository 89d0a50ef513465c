"""The networks that a run starts from: exports checked by hash, and the copies that the run keeps of them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unlabeled.config.sources import Public, copy_of, public, split_source
from unlabeled.engine.public.files import CONFIG_FILE
from unlabeled.engine.public.networks import published_file
from unlabeled.engine.run.checkpoint import anew
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0
from unlabeled.ops.machine.files import disk_error, read_json, sha256, temporary

_SUMS = "SHA256SUMS"  # of a copy; it is written last
_WEIGHTS = "weights"  # name of a copied file of weights, without its suffix
_AGAIN = "give the command of that run again, which writes it from its last checkpoint"


def export_problem(run: Path, name: str) -> str | None:
    """Say what is wrong with an export of `run`, None if nothing: it must be there and have the hash in its .json.

    Exports written before hashes were kept are taken as they are.
    """
    file = run / "export" / f"{name}.safetensors"
    if not file.is_file():
        return f"{file} is missing"
    try:
        about = export_about(run, name)
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
            sums[file.stem] = str(export_about(run, file.stem).get("sha256") or sha256(file))
    except (OSError, ValueError):
        return None
    return sums or None


def export_about(run: Path, name: str) -> dict[str, Any]:
    """Return what the JSON file beside an export says. Raises OSError or ValueError if it cannot be read."""
    beside = run / "export" / f"{name}.json"
    try:
        about = read_json(beside)
    except ValueError:
        raise ValueError(f"{beside.name} is no JSON") from None
    if not isinstance(about, dict):
        raise ValueError(f"{beside.name} holds something else")
    return about


def public_digest(named: Public) -> str | None:
    """Return the hash of a public network's file, None if there is none. Equal ones mean the same weights."""
    try:
        return None if named.file is None else sha256(named.file)
    except OSError:
        return None


def kept_public(named: Public, copy: Path) -> Public | None:
    """Return a public network as the copy holds it, None if it holds none."""
    file = next((file for file in sorted(copy.glob(f"{_WEIGHTS}.*")) if file.is_file()), None)
    return None if file is None else Public(named.library, named.name, file)


def replaced_since(source: str, run: Path) -> bool:
    """Return whether other weights stand under a name by now than those of it that `run` has copied.

    What is gone, or is no finished run any more, is not replaced: the copy stands for it.
    """
    copy, named = copy_of(source, run), public(source)
    before: object
    now: object
    if named is None:
        before, now = digests(copy), digests(split_source(source)[0])
    else:
        kept = kept_public(named, copy)
        before = _sums(copy).get(kept.file.name) if kept and kept.file else None  # of a damaged copy as it was made
        now = public_digest(named)
    return before is not None and now is not None and before != now


def adopt(source: str, run: Path) -> str:
    """Copy what `load_export` needs of a finished run or of public weights into RUN/sources, once.

    Returns the copy as a source. A copy is checked; a damaged or incomplete one is made anew. A source that is no
    finished run, or a file that is not there, is returned as it is, for `load_export` to refuse. Raises UserError if a
    copy is damaged and cannot be made anew, and if published weights cannot be had.
    """
    copy, named = copy_of(source, run), public(source)
    if named is not None:
        there = named.file is None or named.file.is_file()
        made = on_rank0(lambda: _copied(str(named.file or source), copy, there, lambda into: _fill_public(named, into)))
        return str(kept_public(named, copy)) if made else source
    origin, name = split_source(source)
    done = (origin / "DONE").exists()  # one that is not finished is not copied, for it would stay unfinished
    if on_rank0(lambda: _copied(str(origin), copy, done, lambda into: _fill_run(origin, into))):
        return str(copy) if name is None else f"{copy}:{name}"
    return source


def as_given(text: str, source: str, copy: str) -> str:
    """Return a text about a copy, as `adopt` names it, with what the source calls it in its place."""
    named, kept = public(source), public(copy)
    text = text.replace(copy, source)
    if named is None or kept is None or kept.file is None:
        return text.replace(str(split_source(copy)[0]), str(split_source(source)[0]))
    text = text.replace(str(kept.file), str(named.file or source))
    if named.file is not None:  # beside it stands what it is to be converted into
        text = text.replace(f"{kept.file.with_suffix('')}.", f"{named.file.with_suffix('')}.")
    return text


def _copied(origin: str, copy: Path, at_hand: bool, fill: Callable[[Path], None]) -> bool:
    """Return whether a good copy is there, made by `fill` if need be; at_hand: whether there is something to copy."""
    there = copy.exists() or copy.is_symlink()  # a link that leads nowhere stands in the way too
    problem = _copy_problem(copy) if there else None
    if there and problem is None:
        return True
    if not at_hand:
        if problem is None:
            return False
        raise UserError(f"the copy {copy} of {_kind(copy)} is incomplete or damaged ({problem}), and {origin} is not "
                        f"there to copy it again: bring it back there, or {anew(copy.parents[1])}")
    try:
        _copy(copy, fill)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and problem is None:
            return False  # a run that is only read: the origin will do
        raise disk_error(copy, error) from error
    return True


def _kind(copy: Path) -> str:
    return "public weights" if next(copy.glob(f"{_WEIGHTS}.*"), None) else "an earlier run"


def _fill_run(origin: Path, into: Path) -> None:
    for name in sorted(file.stem for file in (origin / "export").glob("*.safetensors")):
        refuse_bad_export(origin, name)
    for file in ("recipe.yaml", "run.json"):
        shutil.copyfile(origin / file, into / file)
    for folder in ("export", "sources"):
        if (origin / folder).is_dir():
            shutil.copytree(origin / folder, into / folder)


def _fill_public(named: Public, into: Path) -> None:
    """Write the file of weights as it is, with what timm says beside it, or one of those that the library has."""
    if named.file is None:
        (into / f"{_WEIGHTS}.safetensors").write_bytes(published_file(named))
        return
    shutil.copyfile(named.file, into / f"{_WEIGHTS}{named.file.suffix or '.pth'}")
    if (named.file.parent / CONFIG_FILE).is_file():
        shutil.copyfile(named.file.parent / CONFIG_FILE, into / CONFIG_FILE)


def _copy(copy: Path, fill: Callable[[Path], None]) -> None:
    partial = temporary(copy)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
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


def _sums(copy: Path) -> dict[str, str]:
    """Return the checksums by name that a copy's files had when it was made; none of one that kept none."""
    file = copy / _SUMS
    lines = [line.split("  ", 1) for line in file.read_text().splitlines()] if file.exists() else []
    return {name: total for total, name in lines}


def _copy_problem(copy: Path) -> str | None:
    """Say what is wrong with a copy, None if nothing; in copies made before sums were kept only exports are checked."""
    try:
        if (copy / _SUMS).exists():
            bad = [name for name, total in _sums(copy).items()
                   if not (copy / name).is_file() or sha256(copy / name) != total]
            return f"{bad[0]} is missing or differs" if bad else None
        missing = [name for name in ("recipe.yaml", "run.json", "export") if not (copy / name).exists()]
        if missing:
            return f"{missing[0]} is missing"
        names = sorted({file.stem for file in (copy / "export").glob("*.*")})
        return next((problem for name in names if (problem := export_problem(copy, name))), None)
    except (OSError, ValueError) as error:
        return str(error)
