"""The result of one protocol on one network, with everything that is needed to judge it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlabeled import __version__
from unlabeled.ops.machine.files import write_atomically


@dataclass(frozen=True)
class Number:
    """One result in percent: value, deviation over draws and details, of the network and of the baselines that ran."""

    name: str
    chance: float
    network: dict[str, Any]
    random_init: dict[str, Any] | None = None
    raw_pixels: dict[str, Any] | None = None


@dataclass(frozen=True)
class Split:
    """A split as it was used: n images with features (of which `unlabelled` had no label), and those left out."""

    split: str
    n: int
    unlabelled: int
    corrupt: int
    corrupt_keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Numbers of one protocol and what they were measured on.

    settings: the resolved protocol. Without labels train and test are the same split and classes is None. health:
    label-free measures per network. sheet: file of the neighbour sheet. measure: what the numbers are, in percent.
    shared: how many of the scored test images also stand in the training split. cautions: sentences on what the
    numbers are not. train_seed: None for a network that was not trained here. precision: in which the network ran.
    """

    name: str
    settings: dict[str, Any]
    run: str
    method: str
    export: str
    update: int
    train_seed: int | None
    seed: int
    card: str
    classes: int | None
    train: Split
    test: Split
    numbers: list[Number]
    health: dict[str, dict[str, float]]
    warning: str | None = None
    sheet: str | None = None
    measure: str = "accuracy"
    shared: int = 0
    cautions: list[str] = field(default_factory=list)
    precision: str = "fp32"

    @property
    def scored(self) -> int:
        """Return the number of test images that were scored."""
        return self.test.n - self.test.unlabelled

    def __getitem__(self, name: str) -> Number:
        """Return a number by its name."""
        return next(number for number in self.numbers if number.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds."""
        return {"unlabeled": __version__, **asdict(self)}

    def write(self, folder: Path) -> Path:
        """Write FOLDER/eval/NAME-update00001234.json atomically; NAME has export and card unless they are the default.

        Raises UserError if it cannot be written.
        """
        path = folder / "eval" / f"{self.name}-update{self.update:08d}.json"
        text = json.dumps(self.as_dict(), indent=1) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
        return path


def read_report(path: Path) -> Report | None:
    """Return the report that a file holds, None if there is none that can be read, of this version."""
    try:
        stored = json.loads(path.read_bytes())
        if stored.pop("unlabeled") != __version__:
            return None
        numbers = [Number(**number) for number in stored.pop("numbers")]
        train, test = (Split(**stored.pop(name)) for name in ("train", "test"))
        return Report(**stored, train=train, test=test, numbers=numbers)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
