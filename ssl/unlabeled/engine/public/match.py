"""The weights of a file against the names of a network: prefixes stripped, and what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from unlabeled.engine.public.files import State
from unlabeled.errors import UserError

# Parts of prefixes, the first of which is taken where a file holds several whole networks: averaged before others, as
# their authors evaluate them; MoCo's query network, which is the one that is handed on.
_PREFERRED = ("state_dict_ema", "model_ema", "ema", "teacher", "encoder_q", "base_encoder", "student", "state_dict",
              "model")
_SHOWN = 3
_COUNTER = "num_batches_tracked"  # of BatchNorm; older files have none, and nothing that is computed needs it


@dataclass(frozen=True)
class Match:
    """What a file holds of a network: the tensors below `prefix`, under the network's own names."""

    prefix: str
    inside: State
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: tuple[str, ...]  # each with both shapes

    @property
    def fits(self) -> bool:
        """Whether the network can be filled."""
        return not (self.missing or self.unknown or self.shapes)

    def problems(self) -> str:
        """Return in one line what does not fit, each kind with its number and its first names."""
        kinds = (("missing", self.missing), ("unknown", self.unknown), ("of other shape", self.shapes))
        return "; ".join(f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)})"
                         for kind, names in kinds if names)


def match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], classifier: Sequence[str], where: str) -> Match:
    """Find the state `wanted` in that of a file, below whatever prefix it stands.

    classifier: names of modules whose tensors may be there or not, and of any shape. What stands beside the prefix
    (heads, queues, an optimizer's moments) is of other modules and left out. Raises UserError, naming `where`, if
    nothing is found, or two networks between which nothing decides.
    """
    prefix = _prefix(state, wanted, where)
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    loose = tuple(f"{name}." for name in classifier)
    names = [name for name in wanted if not name.endswith(_COUNTER)]
    return Match(
        prefix, inside,
        missing=tuple(name for name in names if name not in inside),
        unknown=tuple(name for name in inside
                      if name not in wanted and not name.startswith(loose) and not name.endswith(_COUNTER)),
        shapes=tuple(f"{name} {list(inside[name].shape)} in the file, {list(wanted[name].shape)} in the network"
                     for name in names if name in inside and inside[name].shape != wanted[name].shape),
    )


def _prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> str:
    """Return the prefix below which most of the wanted names stand, of equals the preferred one."""
    found: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                found["".join(f"{part}." for part in parts[:start])] += 1
    if not found:
        raise UserError(f"{where}: none of the {len(state)} tensors of the file (such as '{next(iter(state))}') has a "
                        f"name of this network's (such as '{next(iter(wanted), 'none')}'); it is of another one")
    most = max(found.values())
    best = [prefix for prefix, count in found.items() if count == most]
    ranks = {prefix: _rank(prefix) for prefix in best}
    first = [prefix for prefix in best if ranks[prefix] == min(ranks.values())]
    if len(first) > 1:
        raise UserError(f"{where}: the file holds this network {len(first)} times, below "
                        f"{' and '.join(repr(prefix) for prefix in first)}; write the one that is meant into a file of "
                        "its own")
    return first[0]


def _rank(prefix: str) -> int:
    parts = prefix.split(".")
    return next((rank for rank, word in enumerate(_PREFERRED) if word in parts), len(_PREFERRED))
