"""The folder of one run: what was asked, where it ran, its metrics, and whether it may be gone on with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from unlabeled.config.consent.named import remember_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.config.sources import copy_of
from unlabeled.config.yaml.write import to_yaml
from unlabeled.engine.run.checkpoint import Checkpoints, anew, vanished
from unlabeled.engine.run.lock import RunLock
from unlabeled.engine.run.record import NAME, new_id, read_record, this_start, what_changed
from unlabeled.engine.run.same_recipe import (
    as_begun,
    differences,
    flat,
    kept_recipe,
    replaced_sources,
    stored_recipe,
)
from unlabeled.engine.run.sources import export_problem
from unlabeled.errors import UserError
from unlabeled.ops.machine.files import disk_error, sweep, write_atomically

_ROOMS = ("checkpoints", "export", "sources", "nonfinite")  # in which nobody writes but who holds the lock
_SHARED = ("", "eval", "look", "features")


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

    def open(self, recipe: Recipe, info: dict[str, Any], fresh: bool) -> Recipe:
        """Create the folder, or check that what stands there is the same run; without a checkpoint it is none yet.

        info: what `run.json` keeps beside id and starts, from the first start on. Returns the recipe with the names of
        earlier runs under which the run was begun. Raises UserError, with the keys that differ, if the folder holds a
        run of another recipe, if its checkpoints are gone, and if another start is at work in it.
        """
        self.lock.take()
        if fresh and self.lock.held:
            if any(entry.name != self.lock.file.name for entry in self.path.iterdir()):
                self._set_aside()
            self.lock.release()
        self.enter()
        if self.goes_on():
            recipe = as_begun(recipe, self._refuse_other_recipe(recipe), self.path)
            self._mend(recipe, info)
        else:
            earlier = self._saved_nothing(recipe)
            for source in replaced_sources(recipe, self.path):  # what begins takes what is there now
                shutil.rmtree(copy_of(source, self.path))
            self.write("recipe.yaml", to_yaml(recipe))
            self._write_record({"id": new_id(), "starts": [], **earlier, **info})
        self.requeue.unlink(missing_ok=True)
        return recipe

    def _saved_nothing(self, recipe: Recipe) -> dict[str, Any]:
        """Return id and starts of earlier starts of the same recipe that ended before anything was saved."""
        stored = stored_recipe(self.path / "recipe.yaml")
        try:
            record = read_record(self.path)
        except UserError:
            return {}
        if stored is None or record["id"] is None or differences(stored, recipe.model_dump(mode="json"), self.path):
            return {}
        return {"id": record["id"], "starts": record["starts"]}

    def goes_on(self) -> bool:
        """Return whether something was saved here, so that a start goes on and does not begin.

        Raises UserError if the checkpoints cannot be read, or are gone.
        """
        states = self.saved_states()
        if self.done.exists() or states.any():
            return True
        saved = states.saved() or self._saved_by_starts() or self._saved_by_metrics()
        if saved:
            raise vanished(self.checkpoints, saved)
        return False

    def _saved_by_starts(self) -> int | None:
        """Return an update that was saved, for a start went on from it."""
        try:
            return max((start["update"] for start in read_record(self.path)["starts"]), default=None)
        except (UserError, KeyError, TypeError):
            return None

    def _saved_by_metrics(self) -> int | None:
        """Return an update that must have been saved, by what the metrics tell of."""
        lines = self.read_lines(self.metrics)
        stored = stored_recipe(self.path / "recipe.yaml") if lines else None
        every = flat(stored).get("train.checkpoint_every")
        if not isinstance(every, int) or every < 1:
            return None
        return (lines[-1]["update"] // every) * every or None

    def saved_states(self, keep: int = 2, about: dict[str, Any] | None = None) -> Checkpoints:
        """Return the run's checkpoints."""
        return Checkpoints(self.checkpoints, keep, about, self.path / "SAVED")

    def _refuse_other_recipe(self, recipe: Recipe) -> dict[str, Any]:
        """Return the recipe that stands here. Raises UserError if it, or that of a checkpoint, trains otherwise."""
        newest, about = self.saved_states().newest_about()
        stored, kept = stored_recipe(self.path / "recipe.yaml"), kept_recipe(about, newest or self.path)
        if stored is None and kept is None:
            raise UserError(f"{self.path} holds a run, but its recipe.yaml is missing or damaged, so that nobody knows "
                            f"which: bring the file back, or {anew(self.path)}")
        now = recipe.model_dump(mode="json")
        lines = [] if stored is None else differences(stored, now, self.path)
        if lines:
            raise UserError(
                f"{self.path} holds a run of another recipe:\n"
                + "\n".join(lines)
                + f"\nGive the settings that it was begun with, use another folder, or {anew(self.path)}"
            )
        lines = [] if kept is None else differences(kept, now, self.path, places=stored is None)
        if lines:
            raise UserError(f"checkpoint {newest} is of another recipe:\n" + "\n".join(lines) + "\nBring the run's own "
                            f"checkpoints back, or {anew(self.path)}")
        return stored or kept or now

    def _mend(self, recipe: Recipe, info: dict[str, Any]) -> None:
        """Write `recipe.yaml` and `run.json` anew if they are missing or damaged; the old `run.json` is kept beside."""
        if stored_recipe(self.path / "recipe.yaml") is None:
            print(f"{self.path / 'recipe.yaml'} is missing or damaged; it is written anew, as the checkpoints know it")
            self.write("recipe.yaml", to_yaml(recipe))
        try:
            read_record(self.path)
        except UserError as error:
            file, aside = self.path / NAME, self.path / f"{NAME}.damaged"
            kept = file.exists()
            if kept:
                os.replace(file, aside)
            said = f"{str(error).rpartition(';')[0]}; it is written anew, without the earlier starts"
            print(f"{said} (the old file: {aside})" if kept else said)
            _, about = self.saved_states().newest_about()
            known: dict[str, Any] = {key: about[key] for key in ("data", "info") if key in about}
            self._write_record({"id": new_id(), **info, **known, "starts": []})

    def begin(self, recipe: Recipe, info: dict[str, Any], update: int, streamed: list[str], notes: list[str],
              ) -> list[str]:
        """Add a start that trains from `update` on to `run.json`, and keep the recipe with what may differ.

        streamed: names of the streams whose order depends on the processes. Returns the `notes` on this start that are
        kept with it, and those on what differs from the one before.
        """
        record = read_record(self.path)
        start = this_start(update, recipe.data.workers)
        if update and record["starts"]:
            notes = [*notes, *what_changed(record["starts"][-1], start, streamed)]
        self.write("recipe.yaml", to_yaml(recipe))
        # W&B knows runs that were begun before they had an id by the name of their folder
        name = record["id"] or (self.path.name if update else new_id())
        starts = [*record["starts"], {**start, **({"notes": notes} if notes else {})}]
        self._write_record({"id": name, **info, "starts": starts})
        return notes

    def _write_record(self, record: dict[str, Any]) -> None:
        self.write(NAME, json.dumps(record, indent=1))

    def bad_exports(self) -> list[str]:
        """Return what is wrong with the exports of a finished run; DONE names them."""
        try:
            names = self.done.read_text().splitlines()[1:]
        except (OSError, ValueError):
            names = []
        if not names:  # finished before they were named
            names = sorted({file.stem for file in self.export.glob("*.*") if not file.name.startswith(".")})
        if not names:
            return [f"{self.export} holds no export"]
        return [problem for name in names if (problem := export_problem(self.path, name))]

    def enter(self) -> None:
        """Create the folder and lock it. Raises UserError if another start is at work in it, or it cannot be made."""
        self.lock.take(make=True)
        for name in _ROOMS:
            sweep(self.path / name, owned=True)
        for name in _SHARED:
            sweep(self.path / name)

    def write(self, name: str, text: str) -> None:
        """Write a small text file atomically; what the recipe that trains here runs was agreed to."""
        if name == "recipe.yaml":
            remember_recipe(text)
        self.write_bytes(name, text.encode("utf-8", "surrogateescape"))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        write_atomically(self.path / name, lambda file: file.write(data))

    def append(self, file: Path, lines: list[dict[str, Any]]) -> None:
        """Append JSON lines to `file`."""
        try:
            with open(file, "a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise disk_error(file, error) from error

    def read_lines(self, file: Path) -> list[dict[str, Any]]:
        """Return the lines of `file` that hold JSON objects with a number `update`.

        A last line cut off by a crash is left out; others that cannot be read are too, which is said. Raises UserError
        if the file cannot be read.
        """
        lines, bad, _ = _parsed(file)
        if bad:
            print(f"{file}: {_unreadable(bad)} left out")
        return lines

    def cut_back(self, update: int) -> None:
        """Drop what `metrics.jsonl` and `corrupt.jsonl` say of updates from `update` on: they are done again.

        A file with lines that cannot be read is kept beside the new one.
        """
        for file in (self.metrics, self.corrupt):
            lines, bad, whole = _parsed(file)
            earlier = [line for line in lines if line["update"] < update]
            if len(earlier) == len(lines) and whole:
                continue
            if bad:
                aside = file.with_name(f"{file.name}.damaged")
                os.replace(file, aside)
                print(f"{file}: {_unreadable(bad)} left out; the old file is {aside}")
            self.write(file.name, "".join(json.dumps(line) + "\n" for line in earlier))

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.replaced-{number}")).exists():
            number += 1
        try:
            os.replace(self.path, aside)
        except OSError as error:
            raise disk_error(aside, error) from error
        print(f"fresh=true: the earlier run now stands in {aside}")


def _parsed(file: Path) -> tuple[list[dict[str, Any]], list[int], bool]:
    """Return the good lines of a file, the numbers (from 1) of bad ones, and whether every line is good and whole.

    A bad last line without an end was cut off by a crash, and counts as neither.
    """
    try:
        rows = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], [], True
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}; move it away, or give it back") from error
    lines, bad = [], []
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("update")) is int:
            lines.append(line)
        elif row.strip() and number < len(rows):
            bad.append(number)
    return lines, bad, not bad and not rows[-1]


def _unreadable(bad: list[int]) -> str:
    first = ", ".join(map(str, bad[:3])) + (", ..." if len(bad) > 3 else "")
    return f"{len(bad)} line{'s' * (len(bad) > 1)} that cannot be read ({first})"
