"""Which images of the pool are copies of evaluation images, and by what each pair was told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unlabeled.config.passes.mining import MineSettings
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import Source
from unlabeled.engine.passes.run import run_pass
from unlabeled.ops.distributed import on_rank0
from unlabeled.passes.mining.candidates import PAIR, compared, near_features, near_pictures
from unlabeled.passes.mining.pairs import BATCH, Pairs, comparing

REASONS = ("equal", "hash", "local features")  # by which a pair is one picture


@dataclass(frozen=True)
class Judged:
    """Pairs of an evaluation image and an image of the pool, `candidates.PAIR` [n], and what was found.

    matches, inliers: int32 [n], of local features; -1 where they were not asked. reason: int8 [n], the place in
    `REASONS`, -1 for pairs of two pictures.
    """

    pairs: np.ndarray
    matches: np.ndarray
    inliers: np.ndarray
    reason: np.ndarray

    @property
    def removed(self) -> np.ndarray:
        """Return the places of the pool's images that are copies, int64, ascending."""
        return np.unique(self.pairs["pool"][self.reason >= 0])


def judge(cfg: MineSettings, pool: tuple[Source, Store], against: tuple[Source, Store], allowed: np.ndarray, out: Path,
          device: torch.device) -> Judged | None:
    """Return every pair that was looked at; None while other parts of the comparison are missing.

    allowed: bool [n of the pool], the images that may be chosen; others are no candidates. Call it on all processes.
    """
    pictures, features = on_rank0(lambda: _pairs(cfg, pool[1], against[1], allowed, device))
    counts = np.empty((0, 2), np.int32)
    if len(features):
        source = Pairs(features, pool[0], against[0])
        places = np.stack([features["against"], features["pool"]], 1)  # cosines may be rounded otherwise elsewhere
        name = f"pairs-{hashlib.sha256(places.astype('<i8').tobytes()).hexdigest()[:8]}"
        store = run_pass(comparing(source, device), source, out / name, part=cfg.share, batch=BATCH,
                         workers=cfg.workers, device=device, max_corrupt=1.0)
        if store is None:
            return None
        rows = store.rows(np.arange(len(store)))
        counts = np.stack([rows["matches"], rows["inliers"]], 1)
    alike = (counts[:, 1] >= cfg.inliers) & (counts[:, 1] >= cfg.inlier_share * counts[:, 0])
    counts = np.concatenate([np.full((len(pictures), 2), -1, np.int32), counts])
    reason = np.concatenate([np.where(pictures["equal"], 0, 1), np.where(alike, 2, -1)]).astype(np.int8)
    return Judged(np.concatenate([pictures, features]), counts[:, 0], counts[:, 1], reason)


def _pairs(cfg: MineSettings, pool: Store, against: Store, allowed: np.ndarray, device: torch.device,
           ) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs that are one picture by their hashes, and those that local features are asked about: `PAIR`."""
    places = near_pictures(pool, against, cfg.hash_bits)
    pictures = compared(places[allowed[places[:, 1]]], pool, against)
    allowed = allowed.copy()
    allowed[pictures["pool"]] = False
    if not allowed.any():
        return pictures, np.empty(0, PAIR)
    features = near_features(pool, against, allowed, cfg.candidates, cfg.cosine, device)
    return pictures, compared(features, pool, against)
