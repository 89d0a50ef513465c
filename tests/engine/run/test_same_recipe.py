"""Two recipes train the same if they differ in marked settings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import tiny_recipe

from unlabeled.config.marks import Mark, covers, marked
from unlabeled.config.recipe import Recipe
from unlabeled.engine.run.same_recipe import differences, flat


def changed(tree: Any, key: str) -> Any:
    """Return nested blocks with another value at a dotted key."""
    first, _, rest = key.partition(".")
    return {**tree, first: changed(tree[first], rest) if rest else f"{tree[first]}, changed"}


def test_every_setting_is_marked_or_stands_in_the_way_of_a_resume(tmp_path: Path) -> None:
    for method in ("simclrv2", "simmatchv2"):
        recipe = tiny_recipe(method, "plain").model_dump(mode="json")
        assert differences(recipe, recipe, tmp_path) == []
        reported = set()
        for key in flat(recipe):
            found = [line.split(":")[0].strip() for line in differences(recipe, changed(recipe, key), tmp_path)]
            assert found == ([] if covers(marked(Recipe, Mark.FREE), key) else [key])
            reported |= set(found)
        assert "train.seed" in reported and "optim.weight_decay" in reported
        assert not {"eval.every", "data.workers", "train.keep"} & reported
