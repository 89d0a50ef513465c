"""Which images of a pool may be copies of evaluation images: equal ones, equal hashes, and near features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from unlabeled.data.records.store import Store
from unlabeled.errors import UserError
from unlabeled.passes.mining.hashes import BYTES

_ROWS = 1 << 14  # of the pool in memory at once

# a pair that is looked at: the places of both images, and how near they are
PAIR = np.dtype([("against", "<i8"), ("pool", "<i8"), ("cosine", "<f4"), ("bits", "<i2"), ("equal", "?")])
NO_HASH = -1  # in place of bits, where an image is flat


def blocks(store: Store) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows of a store in order, some at a time, each with the place of its first."""
    for first in range(0, len(store), _ROWS):
        yield first, store.rows(np.arange(first, min(first + _ROWS, len(store))))


def columns(store: Store, *names: str) -> dict[str, np.ndarray]:
    """Return some fields of all rows, [n, ...] each."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _, rows in blocks(store):
        for name, part in parts.items():
            part.append(rows[name].copy())
    return {name: np.concatenate(part) for name, part in parts.items()}


def readable(store: Store) -> np.ndarray:
    """Return which places have a row: bool [n]."""
    there = np.ones(len(store), bool)
    there[list(store.unreadable)] = False
    return there


def near_pictures(pool: Store, against: Store, bits: int) -> np.ndarray:
    """Return pairs [n, 2] of equal squeezed images, or of hashes that differ in `bits` bits at most; (against, pool).

    Of every image of the pool with one evaluation image: an equal one, else that of the nearest hash.
    """
    faiss = _faiss()
    theirs = columns(against, "thumbnail", "waves")
    there = np.flatnonzero(readable(against))
    order = there[np.argsort(theirs["thumbnail"][there], kind="stable")]
    known = theirs["thumbnail"][order]
    hashed = there[theirs["waves"][there].any(1)]
    index = faiss.IndexBinaryFlat(8 * BYTES)
    index.add(np.ascontiguousarray(theirs["waves"][hashed]))
    found = [np.empty((0, 2), np.int64)]
    in_pool = readable(pool)
    for first, rows in blocks(pool):
        places = np.flatnonzero(in_pool[first : first + len(rows)])
        rank = np.searchsorted(known, rows["thumbnail"][places]).clip(max=max(0, len(known) - 1))
        equal = known[rank] == rows["thumbnail"][places] if len(known) else np.zeros(len(places), bool)
        found.append(np.stack([order[rank[equal]], first + places[equal]], 1))
        places = places[~equal & rows["waves"][places].any(1)]
        if len(hashed) and len(places):
            distance, nearest = index.search(np.ascontiguousarray(rows["waves"][places]), 1)
            near = distance[:, 0] <= bits
            found.append(np.stack([hashed[nearest[near, 0]], first + places[near]], 1))
    return np.concatenate(found)


def near_features(pool: Store, against: Store, allowed: np.ndarray, most: int, cosine: float, device: torch.device,
                  ) -> np.ndarray:
    """Return pairs [n, 2], (against, pool), of embeddings with at least this cosine; `most` per evaluation image.

    allowed: bool [n of the pool]. The nearest ones are taken, of equal ones the first. Exact; the pool is read from its
    file in parts, the evaluation set is in memory.
    """
    there = np.flatnonzero(readable(against))
    queries = np.concatenate([rows["embedding"] for _, rows in blocks(against)])[there].astype(np.float32)
    value = np.full((len(there), most), -np.inf, np.float32)
    place = np.full((len(there), most), len(pool), np.int64)
    index = _flat_index(queries.shape[1], device)
    for first, rows in blocks(pool):
        places = np.flatnonzero(allowed[first : first + len(rows)])
        if not len(places) or not len(there):
            continue
        index.reset()
        index.add(rows["embedding"][places].astype(np.float32))
        found, nearest = index.search(queries, min(most, len(places)))
        value = np.concatenate([value, found], 1)
        place = np.concatenate([place, first + places[nearest]], 1)
        ranked = np.lexsort((place, -value), axis=1)[:, :most]
        value, place = np.take_along_axis(value, ranked, 1), np.take_along_axis(place, ranked, 1)
    query, rank = np.nonzero(value >= cosine)
    return np.stack([there[query], place[query, rank]], 1)


def compared(pairs: np.ndarray, pool: Store, against: Store) -> np.ndarray:
    """Return pairs [n, 2], (against, pool), each once and in order, with how near their images are: `PAIR` [n]."""
    out = np.empty(0, PAIR)
    parts = [out]
    pairs = np.unique(pairs, axis=0)
    for first in range(0, len(pairs), _ROWS):
        places = pairs[first : first + _ROWS]
        one, other = against.rows(places[:, 0]), pool.rows(places[:, 1])
        out = np.empty(len(places), PAIR)
        out["against"], out["pool"] = places.T
        out["cosine"] = np.einsum("nd,nd->n", one["embedding"].astype(np.float64), other["embedding"])
        out["bits"] = np.bitwise_count(one["waves"] ^ other["waves"]).sum(1)
        out["bits"][~(one["waves"].any(1) & other["waves"].any(1))] = NO_HASH
        out["equal"] = one["thumbnail"] == other["thumbnail"]
        parts.append(out)
    return np.concatenate(parts)


def _flat_index(width: int, device: torch.device) -> Any:
    faiss = _faiss()
    index: Any = faiss.IndexFlatIP(width)
    if device.type == "cuda" and getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("mining finds near copies with faiss, which is not installed: pip install faiss-cpu, or leave "
                        "the evaluation set out (no against=...)") from None
    return faiss
