"""Repeats a kept update on this machine and finds where its first NaN or infinity came from."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.config.read import read_run_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.engine import launch
from unlabeled.engine.build import method_class, stored_info
from unlabeled.engine.method import build_method
from unlabeled.engine.nonfinite.kept import Kept, Micros, joined, read_kept
from unlabeled.engine.nonfinite.tally import Tally, all_finite, rows_of, tally, tensors_of
from unlabeled.engine.nonfinite.trace import Origin, Trace
from unlabeled.engine.optim.optimizer import drop_frozen_gradients
from unlabeled.engine.plan import make_plan
from unlabeled.engine.replay.finding import Finding
from unlabeled.engine.steps import make_step, make_views
from unlabeled.engine.updater import Updater
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, Losses, Method
from unlabeled.ops.distributed import counts_per_part, world
from unlabeled.ops.machine.files import write_atomically


@dataclass(frozen=True)
class Share:
    """What one try repeats: the images of one process of the run, or those of all as one process would have them."""

    name: str
    info: Info
    micros: Micros
    keys: list[list[str]]  # of the clock stream's samples, by micro-batch


def replay(run: Path, update: int | None = None) -> Finding:
    """Repeat a kept update of a run, the last one if none is named, and print and write where NaN or infinity began.

    Tried are the processes that saw it, one after the other, then all their images at once. Raises UserError if nothing
    was kept, if it is damaged, and if it is started with several processes.
    """
    kept = read_kept(run, update)
    recipe = read_run_recipe(run)
    recipe, note = _here(recipe, kept)
    accelerator = launch.start(recipe.train)
    if world() > 1:
        raise UserError("replay needs one process, on which it repeats those of the run one after the other; start it "
                        "without accelerate launch or torchrun")
    finding = Finding(kept.update, kept.about["nonfinite"], "", weights=_bad_weights(kept))
    for share in _shares(run, recipe, kept):
        print(f"{run}: repeating update {kept.update} of {share.name} on {accelerator.device.type}, precision "
              f"{accelerator.mixed_precision}", flush=True)
        finding = _repeated(share, recipe, run, kept, accelerator, finding)
        gc.collect()  # a method and its hooks refer to one another
        if finding.stage:
            break
    finding = replace(finding, note=note)
    print("\n".join(finding.lines()))
    _write(kept, finding)
    return finding


def _here(recipe: Recipe, kept: Kept) -> tuple[Recipe, str]:
    """Return the recipe as it can be repeated here, and what differs from the run."""
    wanted = {"no": "fp32"}.get(kept.about["precision"], kept.about["precision"])
    precision = "fp32" if wanted == "fp16" and not torch.cuda.is_available() else wanted
    here = "cuda" if torch.cuda.is_available() and not launch.on_cpu() else "cpu"
    there = f"{kept.about['device']} in {wanted}"
    note = "" if f"{here} in {precision}" == there else f"the run was on {there}, this is {here} in {precision}"
    train = recipe.train.model_copy(update={"processes": None, "compile": False, "precision": precision})
    return recipe.model_copy(update={"train": train}), note


def _shares(run: Path, recipe: Recipe, kept: Kept) -> Iterator[Share]:
    """Yield what is tried: the processes in which a loss was not finite, or else all, for gradients are summed."""
    info, count = stored_info(run, recipe), kept.about["world"]
    losses = [number for number, names in enumerate(kept.about["nonfinite"]) if set(names) - {"gradient"}]
    clock = method_class(recipe).clock

    def keys_of(number: int) -> list[list[str]]:
        return [micro[clock] for micro in kept.keys(number)]

    accum = kept.about["grad_accum"]
    for number in losses or range(count):
        mine = replace(info, rank=number, world=count, grad_accum=accum)
        whose = f"rank {number} of {count}" if count > 1 else "the run"
        yield Share(whose, mine, kept.batches(number), keys_of(number))
    if count > 1:
        together = replace(info, rank=0, world=1, grad_accum=accum)
        keys = [list(itertools.chain(*parts)) for parts in zip(*map(keys_of, range(count)), strict=True)]
        yield Share(f"all {count} processes at once", together, joined([kept.batches(n) for n in range(count)]), keys)


def _method(share: Share, recipe: Recipe, run: Path, kept: Kept) -> Method:
    """Return the method with the weights before the update. Raises UserError if they are of another one."""
    method = build_method(recipe, share.info, run)
    others = dict(method.named_buffers())
    try:
        method.load_state_dict(kept.state["method"])
        for name, value in kept.state["buffers"].items():
            others[name].copy_(value)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"the weights in {kept.folder} do not fit the method of {run / 'recipe.yaml'} ({said}); they "
                        "are of another run, or of another version") from error
    return method


def _repeated(share: Share, recipe: Recipe, run: Path, kept: Kept, accelerator: Accelerator, finding: Finding,
              ) -> Finding:
    """Do forward and backward of every micro-batch, and return what is found, with an empty stage if all is finite."""
    clock = method_class(recipe).clock
    plan = make_plan(recipe, clock, share.info.streams[clock].samples, share.info.world)
    updater = Updater(_method(share, recipe, run, kept), recipe, plan, accelerator)
    method, seed, number = updater.method, kept.about["seed"], share.info.rank
    finding = replace(finding, share=share.name)
    parts = []
    for micro, batch in enumerate(share.micros):
        bad = {f"{name} of {stream}": x for stream, one in batch.items() for name, x in tensors_of(vars(one))
               if not all_finite(x)}
        if bad:
            return _in_values(finding, "data", bad, share.keys[micro])
        step = make_step(plan, kept.update, micro, seed, number)
        views = make_views(method, batch, step, seed, number, accelerator.device)
        parts.append({name: updater.laid_out(x) for name, x in views.items()})
        bad = {name: x for name, x in views.items() if not all_finite(x)}
        if bad:
            return _in_values(finding, "views", bad, share.keys[micro])
    counts, trace = counts_per_part([method.counts(views) for views in parts]), Trace(method)
    with trace.attached(), updater.enough_values():
        for micro, views in enumerate(parts):
            trace.begin()
            losses: Losses = updater.model(views, make_step(plan, kept.update, micro, seed, number, counts))
            trace.watch_backward()
            finding = replace(finding, terms={name: float(term.detach()) for name, term in losses.terms.items()})
            if not all(all_finite(term) for term in losses.terms.values()):
                return _in_forward(finding, trace, share.keys[micro])
            (sum(losses.terms.values()) / len(parts)).backward()  # type: ignore[union-attr]
            if trace.backward is not None:
                return replace(finding, stage="backward", origin=trace.backward, gradients=_gradients(method),
                               samples=_samples(trace.backward, share.keys[micro]))
    drop_frozen_gradients(updater.optimizer, kept.update / plan.updates_per_epoch)
    gradients = _gradients(method)
    if gradients:
        return replace(finding, stage="backward", gradients=gradients)
    norms = [p.grad.norm() for p in method.parameters() if p.grad is not None]
    if norms and not all_finite(torch.stack(norms).norm()):
        largest = {name: tally(p.grad) for name, p in method.named_parameters()
                   if p.grad is not None and not all_finite(p.grad.norm())}
        return replace(finding, stage="norm", gradients=largest)
    return finding


def _in_values(finding: Finding, stage: str, bad: dict[str, Tensor], keys: list[str]) -> Finding:
    first = next(iter(bad.values()))
    rows, count = rows_of(first)
    samples = tuple(keys[row] for row in rows) if count == len(keys) else ()
    return replace(finding, stage=stage, values={name: tally(x) for name, x in bad.items()}, samples=samples)


def _in_forward(finding: Finding, trace: Trace, keys: list[str]) -> Finding:
    origin = trace.forward
    inner = origin is not None and (origin.module or origin.next_module)
    return replace(finding, stage="forward" if inner else "loss", origin=origin,
                   samples=_samples(origin, keys))


def _samples(origin: Origin | None, keys: list[str]) -> tuple[str, ...]:
    """Return the samples in whose rows the values are; nothing where rows are no samples, or all are concerned."""
    return tuple(keys[row] for row in origin.rows) if origin and origin.row_count == len(keys) else ()


def _gradients(method: Method) -> dict[str, Tally]:
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {name: tally(grad) for name, grad in gradients.items() if not all_finite(grad)}


def _bad_weights(kept: Kept) -> dict[str, Tally]:
    """Return the weights and buffers that were not finite before the update."""
    return {name: tally(x) for name, x in tensors_of(kept.state["method"]) if not all_finite(x)}


def _write(kept: Kept, finding: Finding) -> None:
    file = kept.folder / "replay.json"
    text = json.dumps(finding.plain(), indent=1).encode()
    try:
        write_atomically(file, lambda stream: stream.write(text))
    except UserError as error:  # a run of somebody else's: the lines above are all there is
        print(error)
    else:
        print(f"written: {file}")
