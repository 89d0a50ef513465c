"""What is written is read back to the same values; the schema knows what the reader knows."""

import pytest
import yaml
from tiny import TINY

from unlabeled.config.read import read_recipe
from unlabeled.config.schema import recipe_schema
from unlabeled.config.tables import METHODS
from unlabeled.config.yaml.write import to_yaml

OVERRIDES = [
    [],
    ["optim.name=adamw", "optim.betas=[0.8, 0.9]"],  # options without effect must not come back
    ["optim.name=sgd", "optim.nesterov=true", "optim.clip=1"],
    ["data.train.card='no'", "data.train.root='1e-3'", "optim.exclude_decay=['~', '*.bias', '0x1', '']"],
    ["optim.lr={base: 1e-7}", "train.epochs=null", "train.updates=3", "method.crop={kind: affine, size: 8}"],
    ["optim.weight_decay={start: 0.04, end: 0.4}"],
    ["optim.weight_decay={start: 0.07, shape: constant, warmup_epochs: 3, warmup_start: 0.04, warmup_rule: k/(w-1)}"],
    ["optim.weight_decay={start: 0, end: 1, shape: linear, portion: 0.5, every: epoch, warmup_epochs: 0.5, "
     "warmup_start: 2, count_from: start}"],
    ["optim.weight_decay={table: [[2, 0.1], [3.5, 0]]}"],
]


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_round_trip(recipe, tmp_path, overrides):
    first = read_recipe(recipe(), overrides)
    (tmp_path / "again.yaml").write_text(to_yaml(first))
    assert read_recipe("again.yaml") == first
    assert yaml.safe_load(to_yaml(first)) == first.model_dump(mode="json")


@pytest.mark.parametrize("name", [f"{name}-{variant}" for name, variants in TINY.items() for variant in variants])
def test_the_recipe_that_a_run_keeps_is_read_again_whatever_its_options(tmp_path, name):
    method, variant = next((m, v) for m, variants in TINY.items() for v in variants if f"{m}-{v}" == name)
    base, overrides = TINY[method][variant]
    first = read_recipe(base, overrides)
    (tmp_path / "kept.yaml").write_text(to_yaml(first))
    assert read_recipe(tmp_path / "kept.yaml") == first


def test_notes_stand_behind_their_keys(recipe, tmp_path):
    first = read_recipe(recipe())
    text = to_yaml(first, {("optim", "lr", "base"): "peak 0.075", ("train",): "short"})
    assert "  base: 0.3  # peak 0.075\n" in text
    assert "train:  # short\n" in text
    (tmp_path / "again.yaml").write_text(text)
    assert read_recipe("again.yaml") == first


def test_schema_covers_the_methods_and_refuses_unknown_keys():
    schema = recipe_schema()
    assert set(schema["properties"]) == {"method", "backbone", "data", "optim", "train", "eval"}
    text = str(schema["properties"]["method"])
    assert all(name in text for name in METHODS)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Optim"]["properties"]["name"]["anyOf"][0]["enum"] == ["lars", "sgd", "adamw", "adamp"]
