"""What a run's streams read, so that a run does not go on with other data unnoticed."""

from __future__ import annotations

import json
from typing import Any

from unlabeled.config.card import Card
from unlabeled.config.marks import Mark, marked
from unlabeled.data.sources.base import Source
from unlabeled.data.streams import OpenStream
from unlabeled.engine.run.checkpoint import anew
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.same_recipe import flat
from unlabeled.errors import UserError
from unlabeled.ops.machine.files import read_json

_LISTED = 10_000  # samples up to which the names are kept, to say which ones are new or gone
_WORDS = {
    "names": "other samples (their names or order differ)",
    "traces": "other images (sizes of files, or pixels, differ)",
    "labels": "other labels",
    "classes": "other classes",
    "places": "another part of the set",
}
_RECORDS = "records."


def data_record(opened: dict[str, OpenStream]) -> dict[str, Any]:
    """Return, by stream, what tells its data from changed data, without reading images."""
    free = set(marked(Card, Mark.FREE))  # what does not change what is learned, or is seen in the samples
    return {name: {**stream.source.fingerprint(), **_cards(stream, free), **_stores(stream.source)}
            for name, stream in opened.items()}


def _cards(stream: OpenStream, free: set[str]) -> dict[str, Any]:
    cards = [card.model_dump(mode="json", exclude=free) for card in stream.cards]
    return {"card": cards[0]} if len(cards) == 1 else {f"card {number}": card for number, card in enumerate(cards)}


def _stores(source: Source) -> dict[str, Any]:
    digests = source.records_digest()
    return {"records": digests} if digests else {}


def keep_names(folder: RunFolder, opened: dict[str, OpenStream]) -> None:
    """Write RUN/data-STREAM.json, the names of the samples of small sets."""
    for name, stream in opened.items():
        names = _names(stream.source)
        if names is not None:
            folder.write(f"data-{name}.json", json.dumps(names))


def changed_data(folder: RunFolder, before: dict[str, Any], now: dict[str, Any], opened: dict[str, OpenStream],
                 ) -> list[str]:
    """Return a line per stream whose data differs from what `before` says; keys that only one of them has do not count.
    """
    lines = []
    for name in before.keys() & now.keys():
        old, new = flat(before[name]), flat(now[name])
        differ = [key for key in old if key in new and old[key] != new[key]]
        if not differ:
            continue
        counts = f"{old['n']} samples when the run began, {new['n']} now" if "n" in differ else f"{new['n']} samples"
        hidden = {"n", *(_WORDS if "n" in differ else ())}  # what follows from another number of samples
        said = [_said(key, old[key], new[key]) for key in differ if key not in hidden]
        example = _example(folder, name, opened[name].source)
        lines.append(f"  data.{name}: {'; '.join([counts, *said])}{example}")
    return sorted(lines)


def refuse_changed(folder: RunFolder, lines: list[str]) -> None:
    """Raise UserError if there are `lines` of changed data."""
    if lines:
        raise UserError(
            f"{folder.path} was begun with other data:\n" + "\n".join(lines) + f"\nBring the data back, "
            f"{anew(folder.path)}, or go on with what is there now: train.allow_changed_data=true "
            "(evaluate: allow_changed_data=true)"
        )


def counts_only(info: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that was begun before more than numbers of samples was kept."""
    streams = info.get("streams")
    if not isinstance(streams, dict):
        return {}
    known = {name: stream for name, stream in streams.items() if isinstance(stream, dict) and "samples" in stream}
    return {name: {"n": stream["samples"]} for name, stream in known.items()}


def _said(key: str, old: Any, new: Any) -> str:
    if key.startswith(_RECORDS):
        return f"another store of {key.removeprefix(_RECORDS)} rows"
    return _WORDS.get(key) or f"{key} {old} when the run began, {new} now"


def _names(source: Source) -> list[str] | None:
    names = source.names() if len(source) <= _LISTED else None
    return None if names is None else [names[i] for i in range(len(names))]


def _example(folder: RunFolder, name: str, source: Source) -> str:
    """Name a sample that is new and one that is gone, where the names are kept."""
    try:
        before = read_json(folder.path / f"data-{name}.json")
        old, new = set(before), set(_names(source) or before)
    except (OSError, ValueError, TypeError):
        return ""
    examples = [f"'{min(some)}' is {word}" for word, some in (("new", new - old), ("gone", old - new)) if some]
    return f" ({', '.join(examples)})" if examples else ""
