"""Exact cosine nearest neighbours and their temperature-weighted vote (arXiv 1805.01978, as in arXiv 2104.14294).

Ties: bank entries whose similarity lies within `TIE` of the k-th one's share the places that are left, so neither the
order of the bank nor the search library decides which of several equal images votes. Equal votes go to the lower class.
A query that is itself an image of the bank is left out of it by its place, not by its similarity: equal images vote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.ops.precision import at_least_float32, full_precision

Search = Literal["torch", "faiss"]

TIE = 1e-6  # cosines this close are equal: rounding of float32 products is below it
_QUERIES = 512  # queries per matrix product: the similarities stay near the cache
_ELEMENTS = 1 << 26  # similarities held at once (256 MB), which bounds the chunk for large banks


def predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: Sequence[int], temperature: float, classes: int,
            search: Search = "torch", own: Tensor | None = None) -> dict[int, Tensor]:
    """Return the predicted class, int64 [m], for every k.

    bank [n, F], queries [m, F]: features of any scale. bank_labels: int64 [n]; entries labelled -1 do not vote.
    own: int64 [m], the place in the bank of each query itself, which does not vote on it; -1 where it is not there.
    Raises UserError if a k exceeds the labelled bank, less the query itself.
    """
    scores = votes(bank, bank_labels, queries, k, temperature, classes, search, own)
    return {each: score.argmax(1) for each, score in scores.items()}


@torch.no_grad()
def votes(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: Sequence[int], temperature: float, classes: int,
          search: Search = "torch", own: Tensor | None = None) -> dict[int, Tensor]:
    """Return for every k the votes, float64 [m, classes]: sums of exp((cosine - the largest cosine) / temperature).

    Arguments and errors as in `predict`. float32 inside, float64 if the bank is float64 (faiss: always float32).
    """
    if bool((bank_labels >= classes).any()):
        raise UserError(f"kNN over {classes} classes, but a label of the bank is {int(bank_labels.max())}")

    def vote(near: Near, k: int, rows: Tensor) -> Tensor:
        return _vote(near, k, temperature, classes)

    return _judged(bank, bank_labels, queries, k, search, own, vote)


@torch.no_grad()
def hits(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: Sequence[int],
         search: Search = "torch", own: Tensor | None = None) -> dict[int, Tensor]:
    """Return for every k how likely the k nearest of each query hold one of its class, float64 [m].

    That is 0 or 1, unless entries tie with the k-th: of these any are as likely to be among the k. labels: int64 [m],
    of the queries. Other arguments and errors as in `votes`.
    """
    labels = labels.to(bank.device)

    def hit(near: Near, k: int, rows: Tensor) -> Tensor:
        above, tied = _above_and_tied(near)
        right = near.labels == labels[rows, None]
        left = k - above.sum(1)
        drawn = random_hits(tied.sum(1), (tied & right).sum(1), left)
        return torch.where((above & right).any(1), 1.0, drawn)

    return _judged(bank, bank_labels, queries, k, search, own, hit)


def random_hits(entries: Tensor, right: Tensor, draws: Tensor) -> Tensor:
    """Return how likely one of the right ones is among `draws` of so many entries, float64; all int64, [m]."""
    miss = torch.ones(len(entries), dtype=torch.float64, device=entries.device)
    for turn in range(int(draws.max()) if len(draws) else 0):
        share = (entries - right - turn).clamp(min=0).double() / (entries - turn).clamp(min=1)
        miss *= torch.where(turn < draws, share, 1.0)
    return 1 - miss


class Near(NamedTuple):
    """Entries of the bank, with the k nearest of c queries: cosines [c, f], labels [c, f], the k-th cosine [c]."""

    cosine: Tensor
    labels: Tensor
    kth: Tensor


def _judged(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: Sequence[int], search: Search, own: Tensor | None,
            judge: Callable[[Near, int, Tensor], Tensor]) -> dict[int, Tensor]:
    """Return what `judge` makes of the nearest labelled entries of all queries, for every k.

    It gets at least the entries that are nearer than the k-th or tie with it, k, and the places of the queries. Raises
    UserError if a k exceeds the labelled bank, less the query itself.
    """
    bank_labels = bank_labels.to(bank.device)
    known = bank_labels >= 0
    own = torch.full((len(queries),), -1) if own is None else own
    own = own.to(bank.device)
    if not bool(known.all()):
        bank, bank_labels = bank[known], bank_labels[known]
        places = torch.where(known, known.cumsum(0) - 1, -1)
        own = torch.where(own >= 0, places[own.clamp(min=0)], -1)
    n, itself = len(bank), bool((own >= 0).any())
    if n - itself < 1:
        raise UserError(f"kNN over a bank without a labelled image{' beside the query itself' if itself else ''}")
    if not k or min(k) < 1 or max(k) > n - itself:
        raise UserError(f"kNN with k = {', '.join(map(str, k))}, but the bank holds {n - itself} labelled images"
                        f"{' beside the query itself' if itself else ''}: allowed is 1 to {n - itself}")
    bank, queries = _unit(bank), _unit(queries.to(bank.device))
    parts: dict[int, list[Tensor]] = {each: [] for each in k}
    first = 0
    for chunk, mine, value, index in _search(bank, queries, min(max(k) + 1, n), search, own):
        numbers = torch.arange(first, first + len(chunk), device=bank.device)
        first += len(chunk)
        for each in k:
            judged = judge(Near(value, bank_labels[index], value[:, each - 1]), each, numbers)
            rows = _unfinished(value, each, n)
            if len(rows):  # more ties than were fetched: look at the whole bank
                with full_precision(bank.device):
                    whole = _without(chunk[rows] @ bank.T, mine[rows])
                every = Near(whole, bank_labels.expand(len(rows), -1), value[rows, each - 1])
                judged[rows] = judge(every, each, numbers[rows])
            parts[each].append(judged)
    return {each: torch.cat(part) for each, part in parts.items()}


@torch.no_grad()
def neighbors(bank: Tensor, queries: Tensor, k: int, search: Search = "torch") -> tuple[Tensor, Tensor]:
    """Return cosines, falling, [m, k] and places in the bank, int64 [m, k]. Raises UserError if k exceeds the bank."""
    if not 1 <= k <= len(bank):
        raise UserError(f"{k} nearest neighbours asked of {len(bank)} images: allowed is 1 to {len(bank)}")
    bank, queries = _unit(bank), _unit(queries.to(bank.device))
    found = [(value, index) for _, _, value, index in _search(bank, queries, k, search)]
    return torch.cat([value for value, _ in found]), torch.cat([index for _, index in found])


def _unit(x: Tensor) -> Tensor:
    return F.normalize(at_least_float32(x), dim=1)


def _search(bank: Tensor, queries: Tensor, k: int, search: Search, own: Tensor | None = None,
            ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield (queries [c, F], their places in the bank [c], cosines [c, k] falling, places [c, k]) in chunks.

    The cosine of a query with itself, at its place in `own`, is -infinity.
    """
    own = torch.full((len(queries),), -1, device=bank.device) if own is None else own
    size = max(1, min(_QUERIES, _ELEMENTS // len(bank)))
    chunks = zip(queries.split(size), own.split(size), strict=True)
    if search == "faiss":
        index = _faiss_index(bank)
        fetched = min(k + bool((own >= 0).any()), len(bank))
        for chunk, mine in chunks:
            found = index.search(chunk.float().cpu().numpy(), fetched)
            value, place = (torch.from_numpy(each).to(bank.device) for each in found)
            value = value.masked_fill(place == mine[:, None], -torch.inf)
            value, order = value.sort(dim=1, descending=True, stable=True)
            yield chunk, mine, value[:, :k], place.gather(1, order)[:, :k]
        return
    for chunk, mine in chunks:
        with full_precision(bank.device):
            similarity = _without(chunk @ bank.T, mine)
        # an unsorted topk and a sort of its short result are faster than a sorted topk
        value, place = similarity.topk(k, dim=1, sorted=False)
        value, order = value.sort(dim=1, descending=True, stable=True)
        yield chunk, mine, value, place.gather(1, order)


def _without(cosine: Tensor, own: Tensor) -> Tensor:
    """Set cosine [c, n] to -infinity at the place `own` [c] of each row, in place; -1 leaves a row as it is."""
    rows = torch.nonzero(own >= 0).flatten()
    cosine[rows, own[rows]] = -torch.inf
    return cosine


def _faiss_index(bank: Tensor) -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("search: faiss needs faiss, which is not installed: pip install faiss-cpu, or search: torch "
                        "(same answer)") from None
    index: Any = faiss.IndexFlatIP(bank.shape[1])
    if bank.is_cuda and getattr(faiss, "get_num_gpus", lambda: 0)() > 0 and hasattr(faiss, "GpuIndexFlatIP"):
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), bank.device.index or 0, index)
    index.add(bank.float().cpu().numpy())
    return index


def _vote(near: Near, k: int, temperature: float, classes: int) -> Tensor:
    """Sum the weights of the first k entries by their labels -> float64 [c, classes]."""
    value = near.cosine
    weight = torch.exp((value - value.amax(1, keepdim=True)).double() / temperature) * _share(near, k)
    score = torch.zeros(len(value), classes, dtype=torch.float64, device=value.device)
    return score.scatter_add_(1, near.labels, weight)


def _above_and_tied(near: Near) -> tuple[Tensor, Tensor]:
    """Return which entries are nearer than the k-th one, and which tie with it, bool [c, f]."""
    above = near.cosine > near.kth[:, None] + TIE
    return above, (near.cosine - near.kth[:, None]).abs() <= TIE


def _share(near: Near, k: int) -> Tensor:
    """Return the part of a place that each entry takes, float64 [c, f]: 1, the ties' share, or 0."""
    above, tied = _above_and_tied(near)
    left = k - above.sum(1, keepdim=True)
    return above.double() + tied.double() * (left / tied.sum(1, keepdim=True).clamp(min=1))


def _unfinished(value: Tensor, k: int, n: int) -> Tensor:
    """Return the rows whose ties with the k-th entry may go on beyond what was fetched, int64 [r]."""
    if value.shape[1] == n:
        return torch.empty(0, dtype=torch.int64, device=value.device)
    return torch.nonzero(value[:, k - 1] - value[:, -1] <= TIE).flatten()
