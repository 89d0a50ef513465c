"""Chains: order and references of the steps, checks before the start, resuming, seeds and the table."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from unlabeled.config.chain import Chain
from unlabeled.engine.restore import load_run
from unlabeled.errors import UserError
from unlabeled.evaluation.chain import check, run_chain
from unlabeled.report.report import Number, Report, Split
from unlabeled.report.seeds import interval, print_seeds

TINY = ["backbone={name: resnet18, width: 0.125, stem: cifar}", "train.epochs=null", "train.updates=2",
        "data.train.batch=16", "eval.every=0", "eval.at_end=[]", "optim.warmup_epochs=0", "optim.lr.base=0.01"]
STEPS = [
    {"name": "pretrain", "recipe": "demo/simclrv2", "settings": TINY},
    {"name": "finetune", "protocol": "finetune-1pct", "of": "pretrain", "evaluate": ["classify"],
     "settings": ["data={batch: 16, subset: {per_class: 4, seed: {seed}}}", "epochs=1", "seed={seed}", "workers=0",
                  "method.crop={kind: affine, size: 12}"]},
    {"name": "distil", "recipe": "demo/distil", "settings": ["method.teacher={finetune}", "train.seed={seed}", *TINY]},
]


def chain(*steps: dict) -> Chain:
    return Chain.model_validate({"steps": list(steps)})


def test_three_steps_with_two_seeds_and_again(tmp_path: Path, capsys) -> None:
    assert run_chain(chain(*STEPS), tmp_path, range(2)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "distil-s0", "distil-s1", "finetune-s0", "finetune-s1", "pretrain"
    ]
    seeds = [load_run(tmp_path / f"finetune-s{seed}").recipe for seed in range(2)]
    assert [r.data.train.subset.seed for r in seeds] == [r.train.seed for r in seeds] == [0, 1]
    for seed in range(2):
        assert load_run(tmp_path / f"distil-s{seed}").recipe.method.teacher == str(tmp_path / f"finetune-s{seed}")
    assert seeds[0].backbone.init == f"{(tmp_path / 'pretrain').resolve()}:backbone+head1"
    first = capsys.readouterr().out
    assert "finetune" in first and "classifier" in first and "95 % interval" in first
    assert run_chain(chain(*STEPS), tmp_path, range(2)) == 0
    again = capsys.readouterr().out
    assert again.count("is finished") == 5
    assert again.splitlines()[-8:] == first.splitlines()[-8:]


def test_an_interrupted_step_ends_the_chain(tmp_path: Path, monkeypatch) -> None:
    from unlabeled.engine.train import Result
    from unlabeled.evaluation import chain as module

    monkeypatch.setattr(module, "train", lambda recipe, run: Result(run, 1, finished=False, exit_code=130))
    assert run_chain(chain(*STEPS), tmp_path, range(1)) == 130


@pytest.mark.parametrize(("step", "message"), [
    ({"name": "a"}, "give either recipe or protocol"),
    ({"name": "a", "protocol": "finetune"}, "'of' names the step"),
    ({"name": "a", "recipe": "distil", "settings": ["method.teacher={b}"]}, "'b', which is no earlier step"),
    ({"name": "pretrain", "recipe": "distil"}, "two steps are named 'pretrain'"),
])
def test_a_chain_that_does_not_hold_together_is_refused(step: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        chain(STEPS[0], step)


@pytest.mark.parametrize(("place", "change", "message"), [
    (2, {"settings": ["method.teacher={finetune}", "optim.lr.bas=1"]}, "unknown key 'optim.lr.bas'"),
    (1, {"protocol": "knn", "settings": []}, "protocol 'knn' does not train"),
    (1, {"evaluate": ["clasify"]}, "Did you mean 'classify'"),
])
def test_all_steps_are_checked_before_the_first_starts(tmp_path: Path, place: int, change: dict, message: str) -> None:
    steps = [*STEPS]
    steps[place] = {**steps[place], **change}
    with pytest.raises(UserError, match=message):
        run_chain(chain(*steps), tmp_path / "runs", range(1))
    assert not (tmp_path / "runs").exists()


def test_braces_of_yaml_are_no_placeholders() -> None:
    step = chain(*STEPS).steps[1]
    assert step.mentions() == {"seed", "pretrain"}
    assert step.filled({"seed": "7"})[0] == "data={batch: 16, subset: {per_class: 4, seed: 7}}"
    assert yaml.safe_load(step.filled({"seed": "7"})[0].partition("=")[2])["subset"]["seed"] == 7
    check(chain(*STEPS))


def test_the_interval_is_students() -> None:
    mean, half = interval([60.0, 64.0, 65.0])
    assert mean == 63 and half == pytest.approx(4.302653 * math.sqrt(7) / math.sqrt(3), rel=1e-6)
    assert math.isnan(interval([1.0])[1])


def test_the_table_shows_means_with_intervals() -> None:
    def report(value: float) -> Report:
        number = Number("classifier", 10.0, {"value": value, "deviation": None, "details": {}})
        split = Split("train", 5, 0, 0)
        return Report("classify", {}, "run", "finetune", "all", 1, 0, 0, "digits", 10, split, split, [number], {})

    console = Console(record=True, width=120)
    print_seeds({"one": [[report(50.0)]], "two": [[report(60.0)], [report(70.0)]]}, "step", console)
    text = console.export_text()
    assert "50.0 " in text and "65.0 ± 63.5" in text and "95 % interval" in text


def test_steps_run_one_at_a_time_on_those_before_and_tell_of_all(tmp_path: Path, capsys, monkeypatch) -> None:
    from unlabeled.evaluation import kept

    two = chain({**STEPS[0], "evaluate": ["knn"]}, STEPS[1])
    with pytest.raises(UserError, match="pretrain"):
        run_chain(two, tmp_path, range(1), ["finetune"])
    assert run_chain(two, tmp_path, range(1), ["pretrain"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["pretrain"]
    measured: list[str] = []
    monkeypatch.setattr(kept, "evaluate_many", lambda protocols, run: measured.append(run.name) or [])
    capsys.readouterr()
    assert run_chain(two, tmp_path, range(1), ["finetune"]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finetune-s0", "pretrain"]
    assert measured == ["finetune-s0"]
    assert re.search(r"pretrain .* knn20@", said[said.rindex(" step "):]), said
