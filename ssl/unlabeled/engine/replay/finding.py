"""What a replay has found, for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from unlabeled.engine.nonfinite.tally import Tally
from unlabeled.engine.nonfinite.trace import Origin

_SHOWN = 5  # names in a line


@dataclass(frozen=True)
class Finding:
    """Where the first NaN or infinity of an update came from.

    seen: what the run saw, by rank. share: what was repeated. stage: data, views, forward, loss, backward or norm (of
    the gradient), empty if everything was finite. weights: what was not finite before the update. terms: of the loss.
    values: of the stages data and views. gradients: of parameters. note: what differs from the run. samples: their
    keys, where only some are concerned.
    """

    update: int
    seen: list[list[str]]
    share: str
    stage: str = ""
    origin: Origin | None = None
    weights: Mapping[str, Tally] = field(default_factory=dict)
    terms: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Tally] = field(default_factory=dict)
    gradients: Mapping[str, Tally] = field(default_factory=dict)
    samples: tuple[str, ...] = ()
    note: str = ""

    def lines(self) -> list[str]:
        """Return it for people, in a few lines."""
        lines = [f"not finite before the update: {_tallies(self.weights)}"] if self.weights else []
        match self.stage:
            case "data":
                lines.append(f"first in the data: {_tallies(self.values)}")
            case "views":
                lines.append(f"first in the views that the method makes of the images: {_tallies(self.values)}")
            case "forward":
                lines += [*self._module("first in the forward pass, in"), f"  loss: {_terms(self.terms)}"]
            case "loss":
                bad = [name for name, value in self.terms.items() if not math.isfinite(value)]
                lines += [f"first in the loss: {' and '.join(bad)}, while all that modules give is finite",
                          f"  loss: {_terms(self.terms)}"]
            case "backward":
                lines += self._backward()
            case "norm":
                lines.append(f"every gradient is finite, but not their norm: {_tallies(self.gradients)}")
            case _:
                lines.append(self._nothing())
        if self.samples:
            lines.append(f"  samples: {_listed(list(self.samples))}")
        return lines + ([f"  {self.note}"] if self.note and self.stage else [])

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "terms": {name: repr(value) for name, value in self.terms.items()}}

    def _module(self, begin: str) -> list[str]:
        assert self.origin is not None
        origin = self.origin
        name = f"module '{origin.module}' ({origin.kind})" if origin.module else f"the method itself ({origin.kind})"
        own = ", in its own code and not that of its parts" * origin.own_code
        own += f", before it calls '{origin.next_module}'" * bool(origin.next_module)
        call = f", call {origin.call}" if origin.call > 1 else ""
        return [f"{begin} {name}{own}{call}", *(f"  {what} {value}" for what, value in origin.values.items())]

    def _backward(self) -> list[str]:
        lines = [f"the loss is finite: {_terms(self.terms)}"]
        if self.origin is not None:
            lines += self._module("first in the backward pass, in")
            lines.append(f"  in {self.origin.operation}"
                         + (f", the gradient of parameter '{self.origin.parameter}'" if self.origin.parameter else ""))
        if self.gradients:
            names = list(self.gradients)
            lines.append(f"  {len(names)} parameter{'s have' if len(names) > 1 else ' has'} a gradient that is not "
                         f"finite: {_listed(names)}")
        return lines

    def _nothing(self) -> str:
        seen = "; ".join(f"rank {number}: {', '.join(names)}" for number, names in enumerate(self.seen) if names)
        why = f": {self.note}" if self.note else ", with the kernels of this machine"
        return f"everything is finite here{why}. The run saw {seen}"


def _tallies(values: Mapping[str, Tally]) -> str:
    shown = [f"'{name}' {value}" for name, value in list(values.items())[:_SHOWN]]
    return "; ".join(shown) + (f"; and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _terms(terms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
