"""Training a detector: SGD with warm-up and steps, in one or several processes, going on from its newest checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unlabeled.config.marks import Mark, marked
from unlabeled.config.protocols.detection import Detection
from unlabeled.config.recipe import Train
from unlabeled.data.detection_batches import DetectionBatch, TrainMaker
from unlabeled.data.loader import batches
from unlabeled.data.sources.base import Source, too_many
from unlabeled.engine import launch
from unlabeled.engine.run.checkpoint import SaveClock, read_about
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.progress import LongPass, Meter, ProgressBar
from unlabeled.engine.run.signals import Signals
from unlabeled.engine.steps import seed_everything
from unlabeled.errors import UserError
from unlabeled.ops.batchnorm import convert
from unlabeled.ops.distributed import max_over_ranks, on_rank0, rank, sum_over_ranks, world
from unlabeled.ops.norms import norm_parameters, tracking_batchnorms

_WARMUP_FROM = 1e-3  # of the learning rate
_LOG_EVERY = 20
_KEEP = 2


def learning_rate(update: int, cfg: Detection) -> float:
    """Return the rate of an update: a linear rise from a thousandth, then a tenth after every one of `cfg.steps`."""
    rate = cfg.lr * 0.1 ** sum(update >= step for step in cfg.steps)
    done = min(1.0, update / cfg.warmup) if cfg.warmup else 1.0
    return rate * (_WARMUP_FROM * (1 - done) + done)


def train_detector(model: nn.Module, cfg: Detection, source: Source, folder: Path, origin: str) -> list[str]:
    """Train `model` in place on the images of `source` that hold objects; return the keys of unreadable ones.

    folder: keeps checkpoints and metrics.jsonl; a training there is gone on with, or, if complete, only loaded. origin:
    says what network it started from. Raises UserError if another training stands there or is at work there, if the
    batch does not divide, if the loss is not finite or too many images cannot be read, and after an interruption.
    """
    if cfg.images_per_update % world():
        raise UserError(f"images_per_update is {cfg.images_per_update}, which {world()} processes cannot share evenly")
    accelerator = launch.start(Train(updates=cfg.updates, precision="fp32"))
    torch.backends.cudnn.benchmark = False  # every batch has another shape
    maker = TrainMaker(source, tuple(cfg.train_sizes), cfg.longest, cfg.seed, masks=cfg.masks)
    place = RunFolder(folder)
    on_rank0(place.enter)
    try:
        return _Training(model, cfg, maker, place, origin, accelerator).run()
    finally:
        place.lock.release()


class _Training:
    """The state of one training; `run` does all of it."""

    def __init__(self, model: nn.Module, cfg: Detection, maker: TrainMaker, folder: RunFolder, origin: str,
                 accelerator: Accelerator) -> None:
        self.cfg, self.maker, self.folder, self.device = cfg, maker, folder, accelerator.device
        unlearned = set(marked(Detection, Mark.FREE, Mark.SCORING))
        self.about = json.dumps({"origin": origin, **cfg.model_dump(mode="json", exclude=unlearned)})
        source = maker.source
        pixels = {"levels": source.pixels.levels and list(source.pixels.levels), "upright": source.pixels.upright}
        self.data = {**source.fingerprint(), "pixels": pixels} if rank() == 0 else {}
        if world() > 1:
            convert(model, self.device)
        self.model = model.to(self.device).train()
        self.optimizer = torch.optim.SGD(_groups(model, cfg.weight_decay), lr=cfg.lr, momentum=cfg.momentum)
        self.parallel = accelerator.prepare_model(self.model)
        self.checkpoints = folder.saved_states(_KEEP, {"data": self.data})
        self.clock = SaveClock(cfg.checkpoint_every)
        self.corrupt: list[str] = []

    def run(self) -> list[str]:
        start, settled = self._resume()
        if start < self.cfg.updates:
            with Signals() as signals:
                self._train(start, signals)
            self._save(self.cfg.updates)
        if not settled:
            self._settle_norms()
            self._save(self.cfg.updates, settled=True)
        return self.corrupt

    def _train(self, start: int, signals: Signals) -> None:
        total = self.cfg.updates
        bar, meter = ProgressBar(total, start, rank() == 0), Meter(self.cfg.images_per_update)
        waiting = time.perf_counter()
        try:
            for update, batch in self._batches(start, total):
                meter.add(time.perf_counter() - waiting)
                rate = learning_rate(update, self.cfg)
                losses = self._update(update, batch, rate)
                heard, due = self._agree(losses, batch, signals.received, update)
                self.optimizer.step()
                done = update + 1
                if update % _LOG_EVERY == 0 or done == total:
                    bar.note(done, self._log(update, losses, rate, meter))
                bar.advance(done)
                if heard or (due and done < total):
                    self._save(done)
                if heard:
                    raise UserError(f"{self.folder.path} was interrupted after update {done}; the same command goes on "
                                    "from there")
                waiting = time.perf_counter()
        finally:
            bar.close()

    def _update(self, update: int, batch: DetectionBatch, rate: float) -> dict[str, Tensor]:
        """Do forward and backward and leave the gradients; return the losses by name."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._losses(update, batch)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _losses(self, update: int, batch: DetectionBatch) -> dict[str, Tensor]:
        # anchors and regions are sampled by torch's global generator
        seed_everything(self.cfg.seed, "detection", update, rank())
        images = [image.to(self.device).float() / 255 for image in batch.images]
        targets = [{name: value.to(self.device) for name, value in target.items()} for target in batch.targets]
        losses: dict[str, Tensor] = self.parallel(images, targets)
        return losses

    def _agree(self, losses: dict[str, Tensor], batch: DetectionBatch, received: int, update: int) -> tuple[int, int]:
        """Return the largest signal of all processes, and whether a checkpoint is due.

        Raises UserError, in all of them, if one cannot go on.
        """
        self.corrupt += batch.corrupt
        finite = torch.stack(list(losses.values())).isfinite().all()
        other = torch.tensor([received, len(batch.corrupt), self.clock.due(update + 1)], device=self.device)
        bad, heard, unreadable, due = max_over_ranks(torch.cat([(~finite).long()[None], other])).tolist()
        if bad:
            rate = learning_rate(update, self.cfg)
            raise UserError(f"the loss became non-finite at update {update} (lr {rate:.3g}): take a lower lr or more "
                            f"warmup. The checkpoints in {self.folder.checkpoints} are from before")
        if unreadable:
            count = int(sum_over_ranks(torch.tensor(len(set(self.corrupt)), device=self.device)))
            if too_many(count, len(self.maker), self.cfg.max_corrupt):
                raise UserError(f"data '{self.maker.source.name}': {count} training images cannot be read, more than "
                                f"max_corrupt {self.cfg.max_corrupt:g} allows; such as {', '.join(self.corrupt[:5])}")
        return int(heard), int(due)

    def _batches(self, start: int, stop: int) -> Iterator[tuple[int, DetectionBatch]]:
        """Yield this process's part of the batches of the updates [start, stop)."""
        size = self.cfg.images_per_update
        mine, per_epoch = size // world(), max(1, len(self.maker) // size)
        units: list[tuple[int, np.ndarray]] = []
        for update in range(start, stop):
            first = update % per_epoch * size + rank() * mine
            units.append((update // per_epoch, np.arange(first, first + mine)))
        yield from enumerate(batches(self.maker, units, self.cfg.workers), start)

    @torch.no_grad()
    def _settle_norms(self) -> None:
        """Replace the running statistics of BatchNorm by means over batches of the final weights ("precise BN")."""
        norms = tracking_batchnorms(self.model)
        if not self.cfg.precise_bn or not norms:
            return
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
        first = self.cfg.updates
        with LongPass("last statistics of BatchNorm", self.cfg.precise_bn, rank() == 0, "batches") as progress:
            for update, made in self._batches(first, first + self.cfg.precise_bn):
                self._losses(update, made)
                progress.advance(update + 1 - first)
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum

    def _log(self, update: int, losses: dict[str, Tensor], rate: float, meter: Meter) -> dict[str, float]:
        names = sorted(losses)
        means = (sum_over_ranks(torch.stack([losses[name].double() for name in names])) / world()).tolist()
        logged = {"loss": sum(means), "lr": rate, **dict(zip(names, means, strict=True)), **meter.read()}
        if rank() == 0:
            self.folder.append(self.folder.metrics, [{"update": update, **logged}])
        return logged

    def _resume(self) -> tuple[int, bool]:
        """Return the updates done, and whether BatchNorm has its final statistics."""
        state, _ = self.checkpoints.load_newest()
        start, settled = 0, False
        if state is not None:
            if state.get("about") != self.about:
                raise UserError(f"{self.folder.path} holds a training with other settings or of another network; move "
                                "it away, or name a setting here, which gives it a folder of its own")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            start, settled = state["update"], state["settled"]
            if not settled:
                on_rank0(self._refuse_changed_data)
        on_rank0(lambda: self.folder.cut_back(start))
        if start and rank() == 0:
            print(f"{self.folder.path} is finished" if settled else f"going on from update {start}", flush=True)
        return start, settled

    def _refuse_changed_data(self) -> None:
        assert self.checkpoints.loaded is not None
        before = read_about(self.checkpoints.loaded).get("data") or {}
        changed = [key for key in before if key in self.data and before[key] != self.data[key]]
        if changed:
            counts = f"{before['n']} images then, {self.data['n']} now" if "n" in changed else ", ".join(changed)
            raise UserError(f"{self.folder.path} was begun with other training images ({counts}): bring them back, or "
                            "move the folder away to begin anew")

    def _save(self, done: int, *, settled: bool = False) -> None:
        state: dict[str, Any] = {"update": done, "settled": settled, "about": self.about,
                                 "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        begin = time.monotonic()
        on_rank0(lambda: self.checkpoints.save(done, state))
        self.clock.saved(begin)


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Put the trainable parameters into two groups: weights and biases decay, norms do not."""
    norms = {id(p) for p in norm_parameters(model).values()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [([p for p in trained if id(p) not in norms], decay), ([p for p in trained if id(p) in norms], 0.0)]
    return [{"params": params, "weight_decay": each} for params, each in groups if params]
