"""The training run: from the newest checkpoint to the last update, or to a signal."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from unlabeled.config.placed import placed
from unlabeled.config.recipe import Recipe
from unlabeled.data.batch import Batch
from unlabeled.data.streams import OpenStream
from unlabeled.engine import build, launch
from unlabeled.engine.dry_run import rehearse
from unlabeled.engine.exports.networks import write_exports
from unlabeled.engine.journal import Journal
from unlabeled.engine.method import build_method
from unlabeled.engine.nodes.preflight import preflight, refuse_small_disk
from unlabeled.engine.nonfinite.kept import MOST, keep_update
from unlabeled.engine.passes.features import gather_names
from unlabeled.engine.plan import Plan, describe, make_plan
from unlabeled.engine.restore import load_state
from unlabeled.engine.run.checkpoint import SaveClock, vanished
from unlabeled.engine.run.chosen import keep_chosen
from unlabeled.engine.run.data import changed_data, counts_only, data_record, keep_names, refuse_changed
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.preview import views_png
from unlabeled.engine.run.record import read_record, refuse_rescale
from unlabeled.engine.run.same_recipe import replaced_sources
from unlabeled.engine.run.signals import Signals, ask_for_requeue
from unlabeled.engine.updater import NonFinite, Updater
from unlabeled.engine.watch import watch
from unlabeled.errors import UserError
from unlabeled.ops.distributed import max_over_ranks, on_rank0, rank, world


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended: updates done, whether the run is complete, and the exit code of the process."""

    run: Path
    update: int
    finished: bool
    exit_code: int = 0


def train(
    recipe: Recipe, run: Path, *, fresh: bool = False, dry_run: bool = False, images: int | None = None
) -> Result:
    """Train `recipe` in the folder `run`, going on from its newest checkpoint.

    dry_run: build everything, estimate the memory per GPU, do two updates, report memory and speed, write nothing.
    images: of the dry run's updates, per process and micro-batch, in place of the recipe's; then the estimate is for
    `train.processes` however many there are here. Raises UserError for bad input.
    """
    few = dry_run and images is not None
    asked = recipe.train.processes if few else None
    accelerator = launch.start(recipe.train.model_copy(update={"processes": None}) if few else recipe.train)
    opened = build.open_data(recipe)
    recipe = placed(recipe)  # what is said of the data shows paths as they were given
    method_class = build.method_class(recipe)
    plan = make_plan(recipe, method_class.clock, len(opened[method_class.clock].source), asked or world())
    info = build.make_info(recipe, opened)
    if asked:
        info = replace(info, block_count=recipe.train.blocks or asked * recipe.train.grad_accum)
    folder = RunFolder(run)
    record = {"info": build.info_record(info), "data": data_record(opened) if rank() == 0 and not dry_run else {}}
    notes: list[str] = []
    with ExitStack() as at_the_end:
        at_the_end.callback(folder.lock.release)
        # what is evaluated afterwards may need kernels that have no deterministic form
        at_the_end.callback(torch.use_deterministic_algorithms, False)
        if not dry_run:
            preflight(recipe, run, lambda: record["data"] or data_record(opened))
            recipe = on_rank0(lambda: folder.open(recipe, record, fresh))
            if on_rank0(lambda: _is_finished(folder, plan.total)):
                return Result(run, plan.total, finished=True)
            notes = on_rank0(lambda: _check_data(folder, recipe, record, opened))
            if on_rank0(folder.goes_on):
                info = replace(info, block_count=on_rank0(lambda: build.kept_blocks(recipe, info, run)))
                record["info"] = build.info_record(info)
        if rank() == 0:
            processes = f"{world()} process{'es' * (world() > 1)} on {accelerator.device.type}"
            begin = f"{run.name}: {processes}, precision {accelerator.mixed_precision}"
            print("\n".join([begin, *describe(plan, recipe), *build.block_lines(recipe, info)]), flush=True)
        if asked:  # each process here has as many blocks as one of those
            info = replace(info, block_count=info.block_count // asked * world())
        method = build_method(recipe, info, None if dry_run else run)
        if dry_run:
            rehearse(Updater(method, recipe, plan, accelerator), opened, info, images)
            return Result(run, 0, finished=False)
        trainer = Trainer(recipe, plan, folder, accelerator, opened, method, record, notes)
        at_the_end.callback(trainer.close)
        return trainer.run()


def _is_finished(folder: RunFolder, total: int) -> bool:
    """Return whether the run is finished and its exports are good; say so, or what is wrong with them."""
    if not folder.done.exists():
        return False
    problems = folder.bad_exports()
    for problem in problems:
        print(f"{problem}; it is written again from the last checkpoint")
    if not problems:
        print(f"{folder.path} is finished ({total} updates); fresh=true starts it anew")
    return not problems


def _check_data(
    folder: RunFolder, recipe: Recipe, record: dict[str, Any], opened: dict[str, OpenStream]
) -> list[str]:
    """Return what differs of data and networks, for the record.

    Raises UserError if that is not allowed, or another number of processes than before.
    """
    lines: list[str] = []
    replaced: list[str] = []
    if folder.goes_on():
        before = read_record(folder.path)
        if not recipe.train.allow_rescale:
            refuse_rescale(folder.path, before["starts"], world())
        lines = changed_data(folder, before["data"] or counts_only(before["info"]), record["data"], opened)
        if not recipe.train.allow_changed_data:
            refuse_changed(folder, lines)
        replaced = replaced_sources(recipe, folder.path)
    keep_chosen(folder, recipe, opened)
    keep_names(folder, opened)
    return [
        *(f"other data than before:{line[1:]}" for line in lines),
        *(f"'{source}' holds other weights by now; the run goes on with its copy of the former ones (fresh=true begins "
          "anew, with those that are there)" for source in replaced),
    ]


class Trainer:
    """The loop around `Updater`: data, checkpoints, metrics, signals. done, saved: updates, counted from the first."""

    done = saved = 0
    kept_dropped = False

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        folder: RunFolder,
        accelerator: Accelerator,
        opened: dict[str, OpenStream],
        method: Any,
        record: dict[str, Any],
        notes: list[str],
    ) -> None:
        self.record, self.notes = record, notes
        self.recipe, self.plan, self.folder, self.accelerator = recipe, plan, folder, accelerator
        self.updater = Updater(method, recipe, plan, accelerator)
        about = {"recipe": recipe.model_dump(mode="json"), "data": record["data"], "info": record["info"]}
        self.checkpoints = folder.saved_states(recipe.train.keep, about)
        self.clock = SaveClock(recipe.train.checkpoint_every)
        self.sources = {name: stream.source for name, stream in opened.items()}
        self.streamed = [name for name, stream in opened.items() if not stream.source.random_access]
        self.source = opened[method.clock].source
        self.streams = build.train_streams(recipe, opened, plan, pin_memory=accelerator.device.type == "cuda")

    def run(self) -> Result:
        """Train to the end or to a signal; write checkpoints, metrics and, at the end, the exports."""
        self.done = self.saved = self._resume()
        on_rank0(lambda: refuse_small_disk(self.checkpoints, self.updater.method, self.updater.optimizer))
        method, heard, problem, exported = self.updater.method, 0, None, ""
        journal = Journal(self.recipe, self.plan, self.folder, self.source, self.accelerator.device, self.done)
        try:
            with Signals() as signals:
                if self.done < self.plan.total:
                    journal.measure(self.done, method)  # what a run that was cut short had not come to
                heard, problem = self._loop(signals, journal)
                if self.saved < self.done:  # the data have ended the run
                    self._save()
                if self.done == self.plan.total:
                    names = self.record["info"]["names"]
                    exported = on_rank0(lambda: write_exports(self.folder, self.recipe, method, self.done, names))
                    journal.measure(self.done, method)
                    heard = self._heard(signals)  # in the last update, or since
        finally:
            journal.close()
        finished = self._finish(exported) if self.done == self.plan.total else None
        if heard:
            return self._leave(heard)
        if finished is None:
            self._raise(problem)
        return finished

    def _heard(self, signals: Signals) -> int:
        """Return the signal that any process has received; call it on all ranks."""
        return int(max_over_ranks(torch.tensor(signals.received, device=self.accelerator.device)))

    def _loop(self, signals: Signals, journal: Journal) -> tuple[int, Exception | None]:
        """Do the updates that are left; return the signal that ended them, if one did, and why there was no data."""
        micros: list[dict[str, Batch]] = []
        problem: Exception | None = None
        batches = self._batches(self.done, self.plan.total, signals.check)
        for update in range(self.done, self.plan.total):
            waiting = time.perf_counter()
            try:
                micros = next(batches)
            except Exception as error:  # a signal among them; what is done so far is saved in any case
                if world() == 1:
                    return signals.received, error
                if not micros:  # nothing stands in for the first batches, and the others wait for them
                    print(f"rank {rank()}: {error}", file=sys.stderr, flush=True)
                    raise
                problem = error
            journal.meter.add(time.perf_counter() - waiting)
            unreadable = [key for micro in micros for batch in micro.values() for key in batch.corrupt]
            notes = [signals.received, len(unreadable), int(self.clock.due(update + 1))]
            watch().begun += 1
            try:
                outcome = self.updater.update(update, micros, notes, abandon=problem is not None)
            except NonFinite as error:
                raise UserError(f"{error}\n{self._keep(update, micros, error.by_rank)}".rstrip()) from error
            heard, any_unreadable, save = outcome.notes
            if outcome.abandoned:
                return heard, problem
            self.done = update + 1
            journal.update(update, outcome, unreadable if any_unreadable else None)
            if outcome.nonfinite and not self.kept_dropped:  # the first of this start, if the run has none
                self.kept_dropped = True
                journal.tell(self._keep(update, micros, outcome.nonfinite, most=1))
            if heard or save or self.done == self.plan.total:
                self._save()
            if heard:
                return heard, None
            if self.done < self.plan.total:
                journal.measure(self.done, self.updater.method)
        return 0, None

    def _keep(self, update: int, micros: list[dict[str, Batch]], by_rank: list[list[str]], most: int = MOST) -> str:
        """Keep an update that has changed nothing, for `replay`; return what to tell of it."""
        about = {
            "update": update, "nonfinite": by_rank, "seed": self.recipe.train.seed, "lr": self.plan.lr(update),
            "grad_accum": self.recipe.train.grad_accum, "precision": self.accelerator.mixed_precision,
            "device": self.accelerator.device.type, "torch": torch.__version__,
        }  # fmt: skip
        return keep_update(self.folder.path, self.updater.method, micros, self.sources, about, most)

    def close(self) -> None:
        """End the loader processes."""
        for stream in self.streams.values():
            stream.close()

    def _batches(
        self, start: int, stop: int, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[list[dict[str, Batch]]]:
        for update, micros in enumerate(build.micro_batches(self.streams, start, stop, waiting), start):
            if update == start:
                self._first(update, micros[0])
            yield micros

    def _first(self, update: int, batch: dict[str, Batch]) -> None:
        views = self.updater.views(update, 0, batch)
        png = views_png(views) if rank() == 0 and self.folder.path.exists() and update == 0 else None
        if png:
            self.folder.write_bytes("views.png", png)
        self.updater.prime(views)

    # ---- checkpoints and ends

    def _resume(self) -> int:
        state, passed = self.checkpoints.load_newest()
        start = 0
        if state is not None:
            start = state["update"]
            load_state(self.updater.method, state, self.folder.checkpoints)
            self.updater.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"] is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        watch().checkpoint = start
        if state is None and on_rank0(self.folder.done.exists):
            raise vanished(self.folder.checkpoints, self.plan.total)
        notes = on_rank0(lambda: self._begin(start))
        if rank() == 0:
            for message in passed:
                print(f"{message}; going on from the one before")
            if start:
                print("\n".join([f"going on from update {start}", *notes]), flush=True)
        return start

    def _begin(self, start: int) -> list[str]:
        self.folder.cut_back(start)
        return self.folder.begin(self.recipe, self.record, start, self.streamed, self.notes)

    def _save(self) -> None:
        scaler = self.accelerator.scaler
        state = {
            "update": self.done,
            "method": self.updater.method.state_dict(),
            "optimizer": self.updater.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        begin = time.monotonic()
        on_rank0(lambda: self.checkpoints.save(self.done, state))
        self.saved = watch().checkpoint = self.done
        self.clock.saved(begin)

    def _leave(self, heard: int) -> Result:
        name = signal.Signals(heard).name
        if rank() == 0:
            if heard != signal.SIGINT:
                self.folder.requeue.touch()
                ask_for_requeue()
            saved = f"saved after update {self.done}; the same command goes on from there"
            print(f"{name}: {saved if self.done else 'nothing was trained yet'}", file=sys.stderr)
        return Result(self.folder.path, self.done, finished=False, exit_code=130 if heard == signal.SIGINT else 0)

    def _raise(self, problem: Exception | None) -> NoReturn:
        """End the run for want of data, on all ranks: those that have data say what the others said."""
        texts = [text for text in gather_names([str(problem)] if problem else []) if text]
        if problem and not isinstance(problem, UserError):
            raise problem
        saved = f"\nSaved after update {self.done}; the same command goes on from there" if self.done else ""
        raise UserError("\n".join(dict.fromkeys(texts)) + saved) from problem

    def _finish(self, lines: str) -> Result:
        names = "".join(f"{name}\n" for name in self.updater.method.exports())
        on_rank0(lambda: self.folder.write("DONE", f"{self.done}\n{names}"))
        if rank() == 0:
            use = f" To use the backbone elsewhere:\n\n{lines}\n" if lines else ""
            print(f"finished after {self.done} updates.{use}")
        return Result(self.folder.path, self.done, finished=True)
