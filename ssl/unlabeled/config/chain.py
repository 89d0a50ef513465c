"""The typed chain: steps that follow one another, each starting from what an earlier one gave. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field, model_validator

from unlabeled.config.recipe import Strict

_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9-]*)\}")


class Link(Strict):
    """One step: a recipe, or a protocol that trains on an earlier step.

    settings: overrides, `key=value`. {NAME} in them is the run folder of the earlier step NAME, {seed} the seed.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="of the step and of its run folder")
    recipe: str | None = Field(None, description="name or path of a recipe")
    protocol: str | None = Field(None, description="instead: a protocol that trains, such as finetune-1pct")
    of: str | None = Field(None, description="the earlier step that the protocol trains on")
    settings: list[str] = Field([], description="overrides of the step's recipe or protocol")
    evaluate: list[str] = Field([], description="protocols that measure the step when it has finished")

    @model_validator(mode="after")
    def _recipe_or_protocol(self) -> Link:
        if (self.recipe is None) == (self.protocol is None):
            raise ValueError("give either recipe or protocol")
        if (self.protocol is None) != (self.of is None):
            raise ValueError("'of' names the step that a protocol trains on; a recipe has none, a protocol needs it")
        return self

    def mentions(self) -> set[str]:
        """Return the placeholders of the settings, and the step that the protocol trains on."""
        found = {name for text in self.settings for name in _PLACEHOLDER.findall(text)}
        return found | ({self.of} if self.of else set())

    def filled(self, values: dict[str, str]) -> list[str]:
        """Return the settings with their placeholders replaced."""
        return [_PLACEHOLDER.sub(lambda match: values[match[1]], text) for text in self.settings]


class Chain(Strict):
    """Steps in their order."""

    steps: list[Link] = Field(min_length=1)

    @model_validator(mode="after")
    def _steps_build_on_earlier_ones(self) -> Chain:
        names = {"seed"}
        for step in self.steps:
            unknown = sorted(step.mentions() - names)
            if unknown:
                earlier = ", ".join(sorted(names - {"seed"})) or "none"
                raise ValueError(f"step '{step.name}' refers to '{unknown[0]}', which is no earlier step ({earlier})")
            if step.name in names:
                raise ValueError(f"two steps are named '{step.name}'")
            names.add(step.name)
        return self

    def per_seed(self) -> Iterator[tuple[Link, bool]]:
        """Yield the steps and whether they run once per seed: they mention {seed}, or a step that does."""
        seeded = {"seed"}
        for step in self.steps:
            if step.mentions() & seeded:
                seeded.add(step.name)
            yield step, step.name in seeded
