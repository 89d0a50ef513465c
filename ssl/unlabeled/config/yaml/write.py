"""Configuration as YAML that `read` reads back to the same values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from unlabeled.config.yaml.lines import Key, Loader, parse


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts text in quotes where either YAML 1.1 or 1.2 would take it for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's name
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()), *Loader.yaml_implicit_resolvers.get(first, ())]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists out: the reader knows no aliases."""
        return True


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def to_yaml(model: BaseModel, notes: Mapping[Key, str] | None = None) -> str:
    """Write all values of a recipe, card or protocol; `notes` become comments behind their keys."""
    text = yaml.dump(model.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=10_000)
    if not notes:
        return text
    lines, numbers = text.splitlines(), parse(text, "the resolved recipe").lines
    for path, note in notes.items():
        lines[numbers[path] - 1] += f"  # {note}"
    return "\n".join(lines) + "\n"
