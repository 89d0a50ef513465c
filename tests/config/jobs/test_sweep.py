"""Which settings are swept, which runs follow, and how they are called."""

from __future__ import annotations

import pytest

from unlabeled.config.jobs.sweep import read_sweep
from unlabeled.errors import UserError

RECIPE = "demo/simclrv2"


def test_every_combination_is_a_run() -> None:
    sweep = read_sweep(RECIPE, ["optim.lr.base=[0.1,3]", "train.epochs=2", "train.seed=[0,1,2]"])
    assert sweep.shared == ["train.epochs=2"]
    assert [cell.name for cell in sweep.cells] == [
        "base-0.1_seed-0", "base-0.1_seed-1", "base-0.1_seed-2", "base-3_seed-0", "base-3_seed-1", "base-3_seed-2"]
    recipes = [sweep.read(cell) for cell in sweep.cells]
    assert [(recipe.optim.lr.base, recipe.train.seed) for recipe in recipes] == [
        (base, seed) for base in (0.1, 3) for seed in (0, 1, 2)]
    assert {recipe.train.epochs for recipe in recipes} == {2}


@pytest.mark.parametrize(("recipe", "text", "values"), [
    (RECIPE, "eval.at_end=[knn,linear]", None),  # the key itself takes this list
    ("demo/cvrl", "method.augment.blur_p=[1.0,0.1]", None),
    (RECIPE, "eval.at_end={sweep: [[knn], [knn, linear]]}", ['["knn"]', '["knn", "linear"]']),
    ("demo/cvrl", "method.augment.blur_p={sweep: [[1.0, 0.1], [0.5, 0.5]]}", ["[1.0, 0.1]", "[0.5, 0.5]"]),
    (RECIPE, "optim.lr.base={sweep: [1, 2]}", ["1", "2"]),
    (RECIPE, "backbone.options={sweep: [{}, {drop_path_rate: 0.1}]}", ["{}", '{"drop_path_rate": 0.1}']),
    (RECIPE, "method.temperature=[0.1, 1e-2]", ["0.1", "0.01"]),
    (RECIPE, "train.precision=[fp32, bf16]", ["fp32", "bf16"]),
    (RECIPE, "train.sync_bn=[true, false]", ["true", "false"]),
    (RECIPE, "optim.lr=[{base: 1}, {base: 2}]", ['{"base": 1}', '{"base": 2}']),
    (RECIPE, "backbone.name=[resnet18, resnet34]", ["resnet18", "resnet34"]),
])  # fmt: skip
def test_a_list_that_the_key_takes_is_its_value(recipe: str, text: str, values: list[str] | None) -> None:
    """Besides one that is swept in any case."""
    sweep = read_sweep(recipe, [text, "train.seed=[0,1]"])
    if values is None:
        assert text in sweep.shared and {tuple(cell.values) for cell in sweep.cells} == {("train.seed",)}
        return
    assert [cell.values[text.partition("=")[0]] for cell in sweep.cells[::2]] == values
    assert len({cell.name for cell in sweep.cells}) == len(sweep.cells)


def test_names_tell_apart_what_is_written_alike() -> None:
    sweep = read_sweep(RECIPE, ["optim.lr.base=[1,2]", "optim.lr={sweep: [{base: 1, scaling: none}, {base: 1}]}"])
    names = [cell.name for cell in sweep.cells]
    assert len(set(names)) == 4 and all(name.startswith("base-") and "/" not in name for name in names)
    assert all(len(name) < 110 for name in names)


@pytest.mark.parametrize(("settings", "message"), [
    (["train.seed=1"], "nothing to sweep over: give a list"),
    (["eval.at_end=[knn,linear]"], "for one that takes lists itself: key={sweep:"),
    (["train.seed=[0,1]", "train.seed=[2,3]"], "'train.seed' is swept twice"),
    (["train.seed=[0,0]"], "names a value twice"),
    (["train.seed=[]"], "give two or more different values"),
    (["train.seed={sweep: 3}"], "sweep needs a list of values"),
    (["optim.lr.bas=[1,2]"], "override 'optim.lr.bas=1': unknown key 'optim.lr.bas'. Did you mean 'base'?"),
    (["optim.lr.base=[1,fast]"], "override 'optim.lr.base=fast'"),
    (["train.seed=[0,1]", "train.epochs=none"], "override 'train.epochs=none'"),
])  # fmt: skip
def test_what_is_no_sweep_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_sweep(RECIPE, settings)
    assert message in str(error.value)
