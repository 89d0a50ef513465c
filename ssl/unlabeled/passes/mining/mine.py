"""Choose from a pool the images that a teacher is surest of, class by class (arXiv 2103.05959 section 3.2).

Copies of evaluation images and images of the training set are left out before anything is ranked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.passes.mining import MineSettings
from unlabeled.data.records.classes import classes_of_card, classes_of_teacher, refuse_other_classes
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import CorruptKey, with_reason
from unlabeled.engine.launch import pick_device, pick_precision
from unlabeled.engine.passes.run import run_pass
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0, rank
from unlabeled.ops.machine.files import read_json, refuse_unwritable
from unlabeled.ops.selection import Selection, top_per_class
from unlabeled.passes.mining.candidates import PAIR, columns, readable
from unlabeled.passes.mining.duplicates import REASONS, Judged, judge
from unlabeled.passes.mining.result import CARD, LIST, REPORT, write_pairs, write_report, write_result
from unlabeled.passes.mining.scoring import Scorer, scoring
from unlabeled.passes.mining.sets import NamedSet, known_images, open_set
from unlabeled.report.mining import PAGE, Pictured, Rows, draw_mining

_SHOWN = 24  # pairs in the report: removed ones, and kept ones
_NAMED = 3  # unreadable images in a line

_SPLITS = {"pool": ("train",), "known": ("train",), "against": ("test", "val")}


def mine(teacher: str, cfg: MineSettings) -> Path | None:
    """Write OUT/list.txt and what belongs to it, and return its path; None while other parts are missing.

    Call it on all processes of a launch. Raises UserError for bad input: a teacher without logits or of other classes,
    an empty pool, a pool that is the evaluation set.
    """
    device = pick_device()
    out = Path(cfg.out).expanduser()
    if rank() == 0:
        refuse_unwritable(out / LIST, "name a folder elsewhere with out=FOLDER")
    on_rank0(lambda: _refuse_other_result(out, teacher, cfg))
    pool, against, known = (_opened(cfg, setting) for setting in ("pool", "against", "known"))
    assert pool is not None
    if against is not None and against.where == pool.where:
        raise UserError(f"against={cfg.against} is the pool itself: every image of it would be a duplicate; name the "
                        "evaluation set")
    network = Scorer(teacher, device, pick_precision(cfg.precision, device.type))
    names = _class_names(network, known)
    if cfg.multi_class_top_p > network.classes:
        raise UserError(f"multi_class_top_p={cfg.multi_class_top_p}, but {teacher} has {network.classes} classes")
    stores = {}
    for setting, each in (("pool", pool), ("against", against)):
        if each is not None:
            stores[setting] = run_pass(
                scoring(network, each.source, cfg.multi_class_top_p), each.source, out / setting, part=cfg.share,
                batch=cfg.batch, workers=cfg.workers, device=device, max_corrupt=cfg.max_corrupt)
    if None in stores.values():
        if against is not None and rank() == 0:
            print(f"this was the first of two rounds: when all parts have done their images, give every part's command "
                  f"again, {cfg.part} too, for the comparison of pairs", flush=True)
        return None
    rows = {setting: store for setting, store in stores.items() if store is not None}
    free = readable(rows["pool"])
    trained = np.empty(0, np.int64)
    if known is not None:
        trained = on_rank0(lambda: known_images(pool.source, known.source, rows["pool"]))
        free[trained] = False
    judged: Judged | None = Judged(np.empty(0, PAIR), *np.empty((3, 0), np.int32))
    if against is not None:
        judged = judge(cfg, (pool.source, rows["pool"]), (against.source, rows["against"]), free, out, device)
    if judged is None:
        if rank() == 0:
            print("this was the second round: the other parts' commands are to be given a second time too, for their "
                  "pairs, and the last of them writes the list", flush=True)
        return None
    verdicts = judged
    return on_rank0(lambda: _finish(_Mined(cfg, teacher, names, pool, against, rows, trained, verdicts), out))


def _refuse_other_result(out: Path, teacher: str, cfg: MineSettings) -> None:
    """Raise UserError if the folder holds what was mined by other settings: a run may read its list."""
    try:
        about = read_json(out / REPORT)
        before = {"teacher": about["teacher"], **about["settings"]}
    except (OSError, ValueError, KeyError, TypeError):
        return
    now = {"teacher": teacher, **_settings(cfg)}
    differ = [f"{key} {before.get(key)} there, {now[key]} now" for key in now if before.get(key) != now[key]]
    if differ:
        raise UserError(f"{out} holds what was mined by other settings ({'; '.join(differ)}); name another folder with "
                        f"out=, or remove {out / REPORT} to choose anew from what is computed there")


def _settings(cfg: MineSettings) -> dict[str, Any]:
    """Return what the choice depends on."""
    return cfg.model_dump(mode="json", exclude={"part", "workers", "batch", "out"})


def _opened(cfg: MineSettings, setting: str) -> NamedSet | None:
    text: str | None = getattr(cfg, setting)
    root: str | None = getattr(cfg, f"{setting}_root")
    if text is None and root is not None:
        raise UserError(f"{setting}_root has no effect without {setting}")
    return None if text is None else open_set(text, root, setting, _SPLITS[setting])


def _class_names(teacher: Scorer, known: NamedSet | None) -> Sequence[str]:
    """Return the names of the teacher's classes: the training set's, its own, or numbers. Raises UserError if both are
    known and differ.
    """
    theirs = None if known is None else classes_of_card(known.source)
    if theirs is not None:
        refuse_other_classes(classes_of_teacher(teacher.name, teacher.classes, teacher.names), theirs,
                             "name the set that the teacher was trained on, or leave known=... out")
    return (theirs and theirs.names) or teacher.names or [str(number) for number in range(teacher.classes)]


class _Mined:
    """All that is known when the choice is made."""

    def __init__(self, cfg: MineSettings, teacher: str, names: Sequence[str], pool: NamedSet,
                 against: NamedSet | None, rows: dict[str, Store], trained: np.ndarray, judged: Judged) -> None:
        self.cfg, self.teacher, self.names, self.pool, self.against = cfg, teacher, names, pool, against
        self.rows, self.trained, self.judged = rows, trained, judged
        self.unreadable = np.array(sorted(rows["pool"].unreadable), np.int64)
        self.removed = np.unique(np.concatenate([self.unreadable, trained, judged.removed]))

    def select(self) -> Selection:
        """Return the choice. Raises UserError if nothing is left to choose from."""
        n = len(self.pool.source)
        if len(self.removed) == n:
            same = len(self.judged.removed)
            raise UserError(f"nothing of the pool's {n} images is left: {same} are in the evaluation set, "
                            f"{len(self.trained)} in the training set, {len(self.unreadable)} unreadable"
                            + ("; pool and evaluation set hold the same pictures" if 2 * same > n else ""))
        found = columns(self.rows["pool"], "class", "score")
        return top_per_class(found["class"].astype(np.int64), found["score"], k=self.cfg.per_class,
                             total=len(self.names), removed=self.removed)

    def counts(self, selection: Selection) -> dict[str, Any]:
        """Return how many images were left out, by reason, and chosen."""
        by = Counter(REASONS[reason] for reason in _first_reasons(self.judged))
        return {"pool": len(self.pool.source), "unreadable": len(self.unreadable), "in training set": len(self.trained),
                **{f"in evaluation set by {reason}": by[reason] for reason in REASONS},
                "pairs looked at": len(self.judged.pairs), "chosen": len(selection.images),
                "classes with fewer than per_class": int((selection.counts < self.cfg.per_class).sum())}


def _first_reasons(judged: Judged) -> list[int]:
    """Return for each copy the first of the reasons by which it is one."""
    first: dict[int, int] = {}
    for place, reason in zip(judged.pairs["pool"].tolist(), judged.reason.tolist(), strict=True):
        if reason >= 0:
            first[place] = min(reason, first.get(place, reason))
    return list(first.values())


def _finish(mined: _Mined, out: Path) -> Path:
    """Choose, write and tell; on one process."""
    selection = mined.select()
    chosen = write_result(out, mined.pool, selection, mined.names)
    write_pairs(out, mined.judged, mined.pool, mined.against)
    counts = mined.counts(selection)
    settings = _settings(mined.cfg)
    classes = {name: int(count) for name, count in zip(mined.names, selection.counts, strict=True)}
    about = {"teacher": mined.teacher, "settings": settings, "counts": counts, "classes": classes,
             "unreadable": [with_reason(key) for key in _unreadable_keys(mined)]}
    write_report(out, about)
    draw_mining(out / PAGE, mined.teacher, Rows(settings, counts, classes), *_pictured(mined))
    for key in _unreadable_keys(mined)[:_NAMED]:
        print(f"left out, cannot be read: {with_reason(key)}")
    if mined.against is None:
        print("no evaluation set was named (against=...), so copies of its images may be among those chosen")
    print(f"{out / LIST}: {chosen} of {counts['pool']} images, at most {mined.cfg.per_class} for each of "
          f"{len(mined.names)} classes; {len(mined.judged.removed)} are copies of evaluation images, "
          f"{len(mined.trained)} in the training set, {len(mined.unreadable)} unreadable. {out / REPORT}, {out / PAGE}")
    print(f"look at the page, then train on them without labels: data.train.card={out / CARD}, or in data.train.mix "
          "beside others")
    return out / LIST


def _unreadable_keys(mined: _Mined) -> list[str]:
    reasons = mined.rows["pool"].unreadable
    return [CorruptKey(mined.pool.source.key(place), reasons[place]) for place in mined.unreadable.tolist()]


def _pictured(mined: _Mined) -> tuple[list[Pictured], list[Pictured]]:
    """Return the removed pairs that came nearest to being kept, and the kept ones nearest to being removed."""
    judged, cfg = mined.judged, mined.cfg
    share = judged.inliers / np.maximum(judged.matches, 1)
    local = np.minimum(judged.inliers / cfg.inliers, share / max(cfg.inlier_share, 1e-9))
    hashed = (cfg.hash_bits + 1) / (judged.pairs["bits"] + 1.0)
    evidence = np.select([judged.reason == 0, judged.reason == 1], [np.inf, hashed], local)
    removed = np.flatnonzero(judged.reason >= 0)
    kept = np.flatnonzero(judged.reason < 0)
    removed = removed[np.lexsort((removed, evidence[removed]))][:_SHOWN]
    kept = kept[np.lexsort((kept, -judged.pairs["cosine"][kept], -evidence[kept]))][:_SHOWN]
    return [_picture(mined, i) for i in removed.tolist()], [_picture(mined, i) for i in kept.tolist()]


def _picture(mined: _Mined, number: int) -> Pictured:
    judged = mined.judged
    pair, reason = judged.pairs[number], int(judged.reason[number])
    one, other = int(pair["against"]), int(pair["pool"])
    assert mined.against is not None
    lines = [f"cosine {pair['cosine']:.3f}"]
    lines += [f"hashes differ in {pair['bits']} of 256 bits"] if pair["bits"] >= 0 else []
    if judged.matches[number] >= 0:
        lines.append(f"{judged.inliers[number]} of {judged.matches[number]} matches agree")
    lines.append(f"one picture by {REASONS[reason]}" if reason >= 0 else "two pictures")
    sides = [(mined.against.source, one), (mined.pool.source, other)]
    return Pictured([source.image(place) for source, place in sides], [source.key(place) for source, place in sides],
                    lines)
