"""What mining leaves: the list, a card that reads it, the classes and scores, every pair that was judged."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from unlabeled.data.sources.files.lists import one_line, write_lines
from unlabeled.data.sources.subset import places_of
from unlabeled.ops.machine.files import write_atomically
from unlabeled.ops.selection import Selection
from unlabeled.passes.mining.candidates import NO_HASH
from unlabeled.passes.mining.duplicates import REASONS, Judged
from unlabeled.passes.mining.sets import NamedSet

LIST, CARD, SELECTION, PAIRS, REPORT = "list.txt", "mined.yaml", "selection.csv", "pairs.csv", "report.json"
_HEADER = """\
# Images that a teacher has mined, without labels; made by `unlabeled mine`, together with the list beside it.
# Use: data.train.card={card}, or beside a labelled set in data.train.mix
"""


def write_result(out: Path, pool: NamedSet, selection: Selection, names: Sequence[str]) -> int:
    """Write list, card and selection, and return how many images they name. names: of the classes.

    Raises UserError if keys of the pool are not unique, and for a full disk.
    """
    source = pool.source
    keys = [source.key(place) for place in selection.images.tolist()]
    places_of(source, keys)
    content = write_lines(keys)
    _write(out / LIST, content)
    _write(out / CARD, _card(out, pool, content, len(keys)))
    rows = ((one_line(source.key(place)), number, names[number], rank + 1, f"{score:.17g}")
            for number in range(len(names))
            for rank, (place, score) in enumerate(zip(selection.places[number].tolist(),
                                                      selection.scores[number].tolist(), strict=True)) if place >= 0)
    _write(out / SELECTION, _table(("key", "class", "name", "rank", "score"), rows))
    return len(keys)


def write_pairs(out: Path, judged: Judged, pool: NamedSet, against: NamedSet | None) -> None:
    """Write every pair that was looked at, and why it is one picture, or nothing for two."""
    rows = []
    for pair, matches, inliers, reason in zip(judged.pairs, judged.matches, judged.inliers, judged.reason, strict=True):
        assert against is not None
        rows.append((one_line(against.source.key(int(pair["against"]))), one_line(pool.source.key(int(pair["pool"]))),
                     f"{pair['cosine']:.4f}", "" if pair["bits"] == NO_HASH else int(pair["bits"]),
                     *("" if count < 0 else int(count) for count in (matches, inliers)),
                     REASONS[reason] if reason >= 0 else ""))
    _write(out / PAIRS, _table(("evaluation", "pool", "cosine", "hash_bits", "matches", "inliers", "one_picture_by"),
                               rows))


def write_report(out: Path, about: dict[str, Any]) -> None:
    """Write report.json."""
    _write(out / REPORT, (json.dumps(about, indent=1) + "\n").encode())


def _card(out: Path, pool: NamedSet, listed: bytes, samples: int) -> bytes:
    source = {"kind": "listed", "card": pool.name, "split": pool.source.split, "list": f"$CARD/{LIST}",
              "sha256": hashlib.sha256(listed).hexdigest()}
    card: dict[str, Any] = {"name": f"{pool.card.name}-mined", "source": source}
    if pool.root is not None:
        card["root"] = pool.root
    card["splits"] = {"train": {"samples": samples}}
    if pool.card.image_size is not None:
        card["image_size"] = pool.card.image_size
    if pool.card.mean is not None and pool.card.std is not None:
        card |= {"mean": list(pool.card.mean), "std": list(pool.card.std)}
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=10_000)
    return (_HEADER.format(card=out / CARD) + text).encode("utf-8", "surrogateescape")


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _write(file: Path, content: bytes) -> None:
    write_atomically(file, lambda stream: stream.write(content))
