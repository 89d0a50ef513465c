"""Features of a whole split: every readable image once, in the order of the split, whatever the batch and processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from unlabeled.augment.photometric import to_input
from unlabeled.backbones.sizes import refuse_images
from unlabeled.data.batch import Batch, Geometry
from unlabeled.data.crops import ClipCrop
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.loader import own_units, split_evenly
from unlabeled.data.sources.base import too_many, with_reason
from unlabeled.data.sources.open import Source
from unlabeled.engine.passes.kept_features import Identity, KeptFeatures, Rows, network_digest
from unlabeled.engine.passes.walk import walk
from unlabeled.engine.run.progress import LongPass
from unlabeled.errors import UserError
from unlabeled.methods.base import Export
from unlabeled.ops.distributed import max_over_ranks, on_rank0, raise_together, rank, sum_over_ranks, world
from unlabeled.ops.machine.layout import channels_last, network_channels_last
from unlabeled.ops.precision import Resolved, autocast

_GATHERED = 1 << 14  # rows per message between processes
_LOOKED_AT = 1 << 11  # rows whose copies are in memory at once


@dataclass
class Features:
    """Features of the readable images of one split, in the order of the split.

    x: float32 [n, F]. index: int64 [n], place in the split. label: int64 [n], -1 where unknown; None without labels.
    corrupt: keys of the images left out. twin: int64 [n], of test images the place in the training split of the same
    image, -1 where it is not there; None: none is.
    """

    x: Tensor
    index: Tensor
    label: Tensor | None = None
    corrupt: list[str] = field(default_factory=list)
    twin: Tensor | None = None

    def labelled(self) -> Features:
        """Return the rows whose label is known."""
        assert self.label is not None
        known = self.label >= 0
        if bool(known.all()):
            return self
        twin = None if self.twin is None else self.twin[known]
        return Features(self.x[known], self.index[known], self.label[known], self.corrupt, twin)


@dataclass(frozen=True)
class Embedder:
    """What turns crops, uint8 [b, 3, S, S] or [b, 3, T, S, S] on the device, into features [b, F].

    crops: how samples are cut, each by all of them; the features of all crops, and of all their clips, are averaged.
    check: raises UserError if it takes no such images. identity: returns a digest of all that its features depend on
    beside the images; None: they are not worth keeping.
    """

    crops: tuple[Geometry, ...]
    embed: Callable[[Tensor], Tensor]
    check: Callable[[], None] = lambda: None
    identity: Identity | None = None
    precision: Resolved = "fp32"

    def whole(self, crops: Sequence[Tensor]) -> Tensor:
        """Return the mean of the features of all crops of the same samples."""
        first, *others = (self.embed(crop).float() for crop in crops)
        return sum(others, first) / len(crops) if others else first


def network_embedder(export: Export, device: torch.device, precision: Resolved = "fp32",
                     crops: Sequence[Geometry] | None = None) -> Embedder:
    """Return the exported network on its own input size and statistics, run in `precision`.

    crops: others than the export's own, of its size and frames. Maps [b, C, H, W] and [b, C, T, H, W] and
    tokens [b, T, C] are averaged over their places. Of a classifier probabilities are averaged where there are several
    crops (arXiv 2008.03800).
    """
    crops = (export.crop,) if crops is None else tuple(crops)
    several = sum(count_of(crop) for crop in crops) > 1
    network = network_channels_last(export.build().to(device)).eval()
    image = export.input

    def check() -> None:
        frames = None if image.clip is None else image.clip.frames
        refuse_images(network, {image.size: "size"}, f"the network that gives the export's {export.gives}",
                      frames=frames)

    def embed(crops: Tensor) -> Tensor:
        x = channels_last(to_input(crops, image.mean, image.std))
        with autocast(crops.device, precision):
            out = network(x).float()
        if several and export.gives == "logits":
            return out.softmax(1)
        return out.mean(tuple(range(2, out.ndim))) if out.ndim > 3 else out.mean(1) if out.ndim == 3 else out

    @functools.cache
    def identity() -> str:
        return network_digest(network, repr((image, crops)), precision)

    return Embedder(crops, embed, check, identity, precision)


def count_of(crop: Geometry) -> int:
    """Return how many pieces of a sample a geometry cuts."""
    return crop.clips.count if isinstance(crop, ClipCrop) else 1


def frames_of(crops: Sequence[Geometry]) -> int:
    """Return how many images one sample is to a network: every frame of every clip, or one."""
    return max(1, sum(crop.clips.count * crop.clips.frames for crop in crops if isinstance(crop, ClipCrop)))


def samples_per_pass(images: int, crops: Sequence[Geometry]) -> int:
    """Return how many samples are cut together where `images` fit."""
    return max(1, images // frames_of(crops))


@torch.inference_mode()
def extract(
    embedders: Mapping[str, Embedder],
    source: Source,
    *,
    batch: int,
    workers: int,
    device: torch.device,
    max_corrupt: float,
    kept: KeptFeatures | None = None,
) -> dict[str, Features]:
    """Return the features of `source` by embedder: all of them on rank 0, on the others this process's part, or none.

    Embedders that cut alike share their crops. What `kept` has is not computed, and what it lacks is added to it.
    Raises UserError, on all ranks, if too many images cannot be read, if an embedder takes no images of its size, and
    if a network gives NaN or infinity.
    """
    identities = {name: e.identity for name, e in embedders.items() if e.identity is not None}
    features = {} if kept is None else _find_again(kept, identities, source)
    wanted = {name: e for name, e in embedders.items() if name not in features}
    for embedder in wanted.values():
        embedder.check()
    for crops in dict.fromkeys(e.crops for e in wanted.values()):
        together = {name: e for name, e in wanted.items() if e.crops == crops}
        parts: dict[str, Features] = {}
        problem: Exception | None = None
        try:
            parts = _extract_part(together, source, crops, batch, workers, device)
        except Exception as error:  # the other processes wait for this one below
            problem = error
        raise_together(problem, device)
        for name, part in parts.items():
            refuse_nonfinite(name, part.x, device, wanted[name].precision)
            features[name] = gather_features(part, device)
    refuse_corrupt(source, next(iter(features.values())).corrupt, max_corrupt)
    if kept is not None and rank() == 0:
        for name in [name for name in wanted if name in identities]:
            kept.keep(identities[name], source, Rows(features[name].x, features[name].index, features[name].corrupt))
    return {name: features[name] for name in embedders}


def _find_again(kept: KeptFeatures, identities: Mapping[str, Identity], source: Source) -> dict[str, Features]:
    """Return what rank 0 finds, so that all ranks compute the same rest; on other ranks without its rows."""
    rows: dict[str, Rows] = {}

    def look() -> dict[str, list[str]]:
        rows.update(kept.find(identities, source))
        return {name: each.corrupt for name, each in rows.items()}

    corrupt = on_rank0(look)
    if corrupt and rank() == 0:
        print(f"features of '{source.split}' of '{source.name}' found again ({', '.join(corrupt)}) in {kept.folder}; "
              "keep_features=false computes them anew", flush=True)
    none = Rows(torch.empty(0, 0), torch.empty(0, dtype=torch.int64))
    label = None if source.labels is None else torch.from_numpy(source.labels)
    features = {}
    for name, keys in corrupt.items():
        part = rows.get(name, none)
        features[name] = Features(part.x, part.index, None if label is None else label[part.index], keys)
    return features


def _extract_part(
    embedders: Mapping[str, Embedder], source: Source, crops: Sequence[Geometry], batch: int, workers: int,
    device: torch.device,
) -> dict[str, Features]:
    """Return the features of this process's part of the split."""
    bounds = split_evenly(len(source), world())
    filled = {name: _Filled(bounds[rank() + 1] - bounds[rank()]) for name in embedders}
    index: list[np.ndarray] = []
    corrupt: list[str] = []
    seen = 0

    def take(batch: Batch, readable: np.ndarray) -> None:
        nonlocal seen
        seen += len(readable) + len(batch.corrupt)
        progress.advance(min(len(source), seen * world()))
        corrupt.extend(batch.corrupt)
        index.append(readable)
        if len(readable):
            for name, embedder in embedders.items():
                filled[name].append(embedder.whole(batch.crops))

    with LongPass(f"features of '{source.split}' of '{source.name}'", len(source), rank() == 0) as progress:
        units = own_units(len(source), rank(), world(), samples_per_pass(batch, crops))
        walk(ImageMaker(source, crops), units, take, source=source, workers=workers, device=device)
    places = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *index]))
    label = None if source.labels is None else torch.from_numpy(source.labels)[places]
    return {name: Features(each.rows(), places, label, corrupt) for name, each in filled.items()}


class _Filled:
    """Rows of features that arrive in batches, at most `most`: held once, where a list and its sum would hold two."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.all = torch.empty(0, 0)

    def append(self, x: Tensor) -> None:
        if self.count == 0:
            self.all = torch.empty(self.most, x.shape[1])
        self.all[self.count : self.count + len(x)] = x
        self.count += len(x)

    def rows(self) -> Tensor:
        return self.all[: self.count]


def gather_features(part: Features, device: torch.device) -> Features:
    """Bring the parts of all ranks together on rank 0, ordered by place; other ranks get their own part back.

    The names of unreadable images reach all ranks, so that all of them stop together.
    """
    if world() == 1:
        return join([part])
    names = gather_names(part.corrupt)
    width = int(max_over_ranks(torch.tensor(part.x.shape[1], device=device)))
    x = part.x if len(part.x) else part.x.new_empty(0, width)
    columns = [x, part.index, *([] if part.label is None else [part.label])]
    gathered = [gather_rows(column, device) for column in columns]
    if rank() != 0:
        return Features(x, part.index, part.label, names)
    return join([Features(gathered[0], gathered[1], gathered[2] if part.label is not None else None, names)])


def gather_names(mine: list[str]) -> list[str]:
    """Concatenate the names of all ranks, on all of them."""
    if world() == 1:
        return mine
    names: list[list[str]] = [[] for _ in range(world())]
    dist.all_gather_object(names, mine)
    return [name for part in names for name in part]


def gather_rows(x: Tensor, device: torch.device) -> Tensor:
    """Concatenate x [n of this rank, ...] of all ranks in rank order on rank 0's CPU; other ranks get x back.

    Rows travel in messages of equal, bounded size, so that a GPU never holds more than one of them per rank.
    """
    counts = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor(len(x), device=device))
    sizes = [int(count) for count in counts]
    parts: list[list[Tensor]] = [[] for _ in sizes]
    for start in range(0, max(sizes), _GATHERED):
        rows = min(_GATHERED, max(sizes) - start)
        mine = torch.zeros(rows, *x.shape[1:], dtype=x.dtype, device=device)
        held = x[start : start + rows]
        mine[: len(held)] = held.to(device)
        if rank() != 0:
            dist.gather(mine)
            continue
        received = [torch.empty_like(mine) for _ in sizes]
        dist.gather(mine, received)
        for part, message, size in zip(parts, received, sizes, strict=True):
            part.append(message[: max(0, min(rows, size - start))].cpu())
    return torch.cat([message for part in parts for message in part]) if rank() == 0 and max(sizes) else x


def join(parts: list[Features]) -> Features:
    """Join parts of one split, of any sizes, in the order of their places."""
    corrupt = [key for part in parts for key in part.corrupt]
    labels = [part.label for part in parts]
    label = None if any(each is None for each in labels) else torch.cat([x for x in labels if x is not None])
    index = torch.cat([part.index for part in parts])
    filled = [part.x for part in parts if len(part.x)] or [parts[0].x]
    x = filled[0] if len(filled) == 1 else torch.cat(filled)
    if bool((index.diff() > 0).all()):  # as ranks give them; a copy less
        return Features(x, index, label, corrupt)
    order = index.argsort()
    return Features(x[order], index[order], None if label is None else label[order], corrupt)


def refuse_corrupt(source: Source, corrupt: list[str], allowed: float) -> None:
    """Raise UserError if more than the `allowed` share of a split is `corrupt`."""
    if 0 < len(corrupt) == len(source):
        raise UserError(
            f"data '{source.name}', split '{source.split}': {len(corrupt)} of {len(source)} images cannot be "
            f"read, so none is left; the first: {'; '.join(map(with_reason, corrupt[:3]))}"
        )
    if too_many(len(corrupt), len(source), allowed):
        raise UserError(
            f"data '{source.name}', split '{source.split}': {len(corrupt)} of {len(source)} images cannot "
            f"be read, more than max_corrupt {allowed:g} allows; the first: {'; '.join(map(with_reason, corrupt[:3]))}"
        )


def refuse_nonfinite(name: str, x: Tensor, device: torch.device, precision: Resolved = "fp32") -> None:
    """Raise UserError, on all ranks, if features x [n of this rank, F] of any of them are NaN or infinite."""
    rows = [torch.isfinite(part).all(1) for part in x.split(_LOOKED_AT)]
    bad = sum_over_ranks((~torch.cat(rows)).sum().to(device))
    if int(bad):
        cure = (
            "fp16 holds no number beyond 65504, so take precision=bf16 or fp32"
            if precision == "fp16"
            else
            "leave this baseline out with random_init=false"
            if name == "random_init"
            else "the run has diverged, so take an earlier checkpoint (RUN/checkpoints/...) or train again with a "
            "lower optim.lr.base"
        )
        raise UserError(f"{name}: the features of {int(bad)} images are NaN or infinite; {cure}")
