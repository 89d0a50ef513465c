"""The training run: from the newest checkpoint to the last update, or to a signal."""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from unlabeled.config.placed import placed
from unlabeled.config.recipe import Recipe
from unlabeled.data.base import with_reason
from unlabeled.data.batch import Batch
from unlabeled.engine import build, launch
from unlabeled.engine.checkpoint import Checkpoints
from unlabeled.engine.chosen import keep_chosen
from unlabeled.engine.corrupt import CorruptSamples
from unlabeled.engine.export import write_exports
from unlabeled.engine.method import build_method
from unlabeled.engine.online import Online
from unlabeled.engine.plan import Plan, describe, make_plan
from unlabeled.engine.preview import views_png
from unlabeled.engine.progress import Meter, ProgressBar
from unlabeled.engine.run_folder import RunFolder
from unlabeled.engine.signals import Signals
from unlabeled.engine.sinks import Metrics
from unlabeled.engine.updater import Outcome, Updater
from unlabeled.ops.distributed import on_rank0, rank, sum_over_ranks, world


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended: updates done, whether the run is complete, and the exit code of the process."""

    run: Path
    update: int
    finished: bool
    exit_code: int = 0


def train(recipe: Recipe, run: Path, *, fresh: bool = False, dry_run: bool = False) -> Result:
    """Train `recipe` in the folder `run`, going on from its newest checkpoint.

    dry_run: build everything, do two updates, report memory and speed, write nothing. Raises UserError for bad input.
    """
    accelerator = launch.start(recipe.train)
    opened = build.open_streams(recipe)
    recipe = placed(recipe)  # what is said of the data shows paths as they were given
    method_class = build.method_class(recipe)
    plan = make_plan(recipe, method_class.clock, len(opened[method_class.clock].source), world())
    info = build.make_info(recipe, opened)
    folder = RunFolder(run)
    if not dry_run:
        on_rank0(lambda: folder.open(recipe, {"info": build.info_record(info)}, fresh))
        on_rank0(lambda: keep_chosen(folder, recipe, opened))
        if on_rank0(folder.done.exists):
            if rank() == 0:
                print(f"{run} is finished ({plan.total} updates); fresh=true starts it anew")
            folder.lock.release()
            return Result(run, plan.total, finished=True)
    if rank() == 0:
        processes = f"{world()} process{'es' * (world() > 1)} on {accelerator.device.type}"
        print(
            "\n".join([f"{run.name}: {processes}, precision {accelerator.mixed_precision}", *describe(plan, recipe)]),
            flush=True,
        )
    trainer = Trainer(recipe, plan, folder, accelerator, opened, build_method(recipe, info, None if dry_run else run))
    try:
        return trainer.dry_run() if dry_run else trainer.run()
    finally:
        trainer.close()
        folder.lock.release()


def buffer_sizes(method: torch.nn.Module, largest: int = 3) -> str:
    """Say how much memory the buffers of `method` take (banks, queues, statistics), and name the largest ones."""
    sizes = {name: buffer.numel() * buffer.element_size() / 2**20 for name, buffer in method.named_buffers()}
    first = sorted(sizes, key=lambda name: -sizes[name])[:largest]
    named = ", ".join(f"{name} {sizes[name]:.2f}" for name in first if sizes[name] >= 0.01)
    return f"buffers {sum(sizes.values()):.2f} MiB" + (f" ({named})" if named else "")


class Trainer:
    """The loop around `Updater`: data, checkpoints, metrics, signals."""

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        folder: RunFolder,
        accelerator: Accelerator,
        opened: dict[str, build.OpenStream],
        method: Any,
    ) -> None:
        self.recipe, self.plan, self.folder, self.accelerator = recipe, plan, folder, accelerator
        self.updater = Updater(method, recipe, plan, accelerator)
        self.checkpoints = Checkpoints(folder.checkpoints, recipe.train.keep)
        self.source = opened[method.clock].source
        self.streams = build.train_streams(recipe, opened, plan, pin_memory=accelerator.device.type == "cuda")

    def run(self) -> Result:
        """Train to the end or to a signal; write checkpoints, metrics and, at the end, the exports."""
        start = self._resume()
        corrupt = CorruptSamples(self.folder, len(self.source), self.recipe.data.max_corrupt)
        online = Online(self.recipe, self.plan, self.source, self.accelerator.device)
        metrics = Metrics(self.folder, self.recipe.train.sinks, start) if rank() == 0 else None
        bar, meter = ProgressBar(self.plan.total, start, rank() == 0), Meter(self.plan.batch)
        done, heard, dropped, waiting = start, 0, 0, time.perf_counter()
        try:
            with Signals() as signals:
                for update, micros in self._batches(start, self.plan.total):
                    meter.add(time.perf_counter() - waiting)
                    bad = [key for micro in micros for batch in micro.values() for key in batch.corrupt]
                    outcome = self.updater.update(update, micros, [signals.received, len(bad)])
                    done, (heard, any_bad) = update + 1, outcome.notes
                    dropped += outcome.dropped
                    if outcome.dropped and dropped.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...
                        bar.say(f"update {update} was dropped for a non-finite loss or gradient, {dropped} so far")
                    if any_bad:
                        for key in corrupt.add(update, bad):
                            bar.say(f"cannot read {with_reason(key)}; another sample takes its place")
                    logged: dict[str, float] = {}
                    if update % self.recipe.train.log_every == 0 or done == self.plan.total:
                        logged = self._log(update, outcome, meter)
                        bar.note(logged)
                    if online.due(done):
                        found = online.measure(self.updater.method)
                        logged |= found
                        for line in online.report(done, found):
                            bar.say(line)
                    if metrics and logged:
                        metrics.write(update, logged)
                    bar.advance(done)
                    if heard or done % self.recipe.train.checkpoint_every == 0 or done == self.plan.total:
                        self._save(done)
                    if heard:
                        break
                    waiting = time.perf_counter()
        finally:
            bar.close()
            if dropped:
                bar.say(f"{dropped} updates were dropped for a non-finite loss or gradient")
            if metrics:
                metrics.close()
        return self._leave(heard, done) if done < self.plan.total else self._finish(done)

    def dry_run(self) -> Result:
        """Do two updates, time the second and report memory; nothing is written."""
        for update, micros in self._batches(0, 2):
            begin = time.perf_counter()
            loss = float(self.updater.update(update, micros, []).values["loss"])
            seconds = time.perf_counter() - begin
        if rank() == 0:
            cuda = self.accelerator.device.type == "cuda"
            peak = (
                torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            )
            print(
                f"dry run: loss {loss:.4f}, {self.plan.batch / seconds:.1f} images/s without data loading, "
                f"peak memory per process {peak / 2**30:.2f} GiB ({'GPU' if cuda else 'resident'}); "
                f"{buffer_sizes(self.updater.method)}; nothing was written"
            )
        return Result(self.folder.path, 0, finished=False)

    def close(self) -> None:
        """End the loader processes."""
        for stream in self.streams.values():
            stream.close()

    def _batches(self, start: int, stop: int) -> Iterator[tuple[int, list[dict[str, Batch]]]]:
        streams = [stream.updates(start, stop) for stream in self.streams.values()]
        for update, parts in enumerate(zip(*streams, strict=True), start):
            micros = [dict(zip(self.streams, batches, strict=True)) for batches in zip(*parts, strict=True)]
            if update == start:
                self._first(update, micros[0])
            yield update, micros

    def _first(self, update: int, batch: dict[str, Batch]) -> None:
        views = self.updater.views(update, 0, batch)
        png = views_png(views) if rank() == 0 and self.folder.path.exists() and update == 0 else None
        if png:
            self.folder.write_bytes("views.png", png)
        self.updater.prime(views)

    def _log(self, update: int, outcome: Outcome, meter: Meter) -> dict[str, float]:
        names = sorted(outcome.values)
        mean = sum_over_ranks(torch.stack([outcome.values[n].double() for n in names])) / world()
        return {
            "epoch": (update + 1) / self.plan.updates_per_epoch,
            "lr": self.plan.lr(update),
            **dict(zip(names, mean.tolist(), strict=True)),
            "dropped": float(outcome.dropped),
            **meter.read(),
        }

    # ---- checkpoints and ends

    def _resume(self) -> int:
        state, passed = self.checkpoints.load_newest()
        start = 0
        if state is not None:
            start = state["update"]
            self.updater.method.load_state_dict(state["method"])
            self.updater.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        on_rank0(lambda: self.folder.cut_back(start))
        if rank() == 0:
            for message in passed:
                print(f"{message}; going on from the one before")
            if start:
                print(f"going on from update {start}", flush=True)
        return start

    def _save(self, done: int) -> None:
        scaler = self.accelerator.scaler
        state = {
            "update": done,
            "method": self.updater.method.state_dict(),
            "optimizer": self.updater.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        on_rank0(lambda: self.checkpoints.save(done, state))

    def _leave(self, heard: int, done: int) -> Result:
        name = signal.Signals(heard).name
        if rank() == 0:
            if heard != signal.SIGINT:
                self.folder.requeue.touch()
            print(f"{name}: saved after update {done}; the same command goes on from there", file=sys.stderr)
        return Result(self.folder.path, done, finished=False, exit_code=130 if heard == signal.SIGINT else 0)

    def _finish(self, done: int) -> Result:
        lines = on_rank0(lambda: write_exports(self.folder, self.recipe, self.updater.method, done))
        on_rank0(lambda: self.folder.write("DONE", f"{done}\n"))
        if rank() == 0:
            print(f"finished after {done} updates. To use the backbone elsewhere:\n\n{lines}\n")
        return Result(self.folder.path, done, finished=True)
