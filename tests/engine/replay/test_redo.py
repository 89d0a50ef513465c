"""An update that was not finite is kept, and a replay says where the first NaN or infinity came from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import run_processes
from tiny import Tiny, tiny_recipe, tiny_run
from torch import nn

from unlabeled.cli.main import main
from unlabeled.config.yaml.write import to_yaml
from unlabeled.engine import build
from unlabeled.engine.nonfinite.kept import FOLDER, keep_update, read_kept
from unlabeled.engine.replay.redo import replay
from unlabeled.engine.train import train
from unlabeled.engine.updater import NonFinite
from unlabeled.errors import UserError
from unlabeled.methods.base import Losses, Method
from unlabeled.ops.distributed import rank

CASES = [("rotnet", "all"), ("simclrv2", "plain"), ("poa", "sinkhorn"), ("ssld", "batch")]


def kept_run(run: Path, method: str, variant: str, plant: Callable[[Tiny], None] = lambda tiny: None,
             more: tuple[str, ...] = ()) -> Path:
    """Do updates 0 and 1 of a tiny run, the second one after `plant`, and keep it as a run does."""
    recipe = tiny_recipe(method, variant, ["train.nonfinite=stop", *more])
    opened = build.open_data(recipe)
    tiny = tiny_run(recipe)
    tiny.train(0, 1)
    plant(tiny)
    micros = tiny.micros(1)
    with pytest.raises(NonFinite) as caught:
        tiny.updater.update(1, micros, [0])
    if rank() == 0:
        run.mkdir()
        (run / "recipe.yaml").write_text(to_yaml(recipe))
        info = build.info_record(build.make_info(recipe, opened))
        (run / "run.json").write_text(json.dumps({"info": info}))
    about = {"update": 1, "nonfinite": caught.value.by_rank, "seed": recipe.train.seed, "lr": 0.1,
             "grad_accum": recipe.train.grad_accum, "precision": "no", "device": "cpu"}
    sources = {name: stream.source for name, stream in opened.items()}
    assert "unlabeled replay" in keep_update(run, tiny.updater.method, micros, sources, about)
    return run


def convolution(method: nn.Module) -> tuple[str, nn.Module]:
    """Return the last layer with weights that the student's or the online network has, and its name."""
    layers = [(name, module) for name, module in method.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
              and module.weight.requires_grad and "teacher" not in name and "key" not in name]
    return layers[len(layers) // 3]


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_a_bad_weight_is_named_with_its_module(method: str, variant: str, tmp_path: Path) -> None:
    names: list[str] = []

    def plant(tiny: Tiny) -> None:
        name, layer = convolution(tiny.updater.method)
        names.append(name)
        layer.weight.data.flatten()[0] = math.nan

    finding = replay(kept_run(tmp_path / "run", method, variant, plant))
    assert finding.stage == "forward" and finding.origin.module == names[0] and not finding.origin.own_code
    assert finding.origin.values["parameter weight"].nan == 1 and finding.origin.values["input"].finite
    assert f"{names[0]}.weight" in finding.weights and finding.share == "the run"


@pytest.mark.parametrize(("method", "variant"), CASES[1:2])
def test_an_overflow_is_found_where_input_and_weights_are_finite(method: str, variant: str, tmp_path: Path) -> None:
    names: list[str] = []

    def plant(tiny: Tiny) -> None:
        name, layer = convolution(tiny.updater.method)
        names.append(name)
        layer.weight.data.fill_(3e38)

    finding = replay(kept_run(tmp_path / "run", method, variant, plant))
    values = finding.origin.values
    assert finding.stage == "forward" and finding.origin.module == names[0] and not finding.weights
    assert values["input"].finite and values["parameter weight"].finite and not values["output"].finite


@pytest.mark.parametrize(("method", "variant"), CASES[:1])
def test_a_term_of_the_loss_is_named(
    method: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = build.method_class(tiny_recipe(method, variant))
    forward = kind.forward

    def poisoned(self: Method, views: dict, step: object) -> Losses:
        losses = forward(self, views, step)
        bad = {"bad": next(iter(losses.terms.values())) * math.nan} if step.update == 1 else {}
        return replace(losses, terms={**losses.terms, **bad})

    monkeypatch.setattr(kind, "forward", poisoned)
    run = kept_run(tmp_path / "run", method, variant)
    finding = replay(run)
    assert finding.stage == "loss" and finding.lines()[0].startswith("first in the loss: bad, while all")
    said = json.loads((run / FOLDER / "update-00000001" / "replay.json").read_text())
    assert said["stage"] == "loss" and said["terms"]["bad"] == "nan"


def test_a_gradient_is_named_by_module_operation_and_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = nn.Linear.forward
    root = lambda self, x: forward(self, x) + (self.weight * 0).sum().sqrt()  # noqa: E731 - its slope at 0 is infinite
    run = kept_run(tmp_path / "run", "finetune", "plain", lambda tiny: monkeypatch.setattr(nn.Linear, "forward", root))
    finding = replay(run)
    assert finding.stage == "backward" and finding.origin.module == "classifier.linear"
    assert finding.origin.operation == "SqrtBackward0" and "classifier.linear.weight" in finding.gradients
    assert all(math.isfinite(value) for value in finding.terms.values())
    lines = finding.lines()
    assert lines[0].startswith("the loss is finite: ") and "'classifier.linear' (Linear)" in lines[1]


def test_a_gradient_of_the_methods_own_code_is_not_laid_to_the_module_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = build.method_class(tiny_recipe("finetune", "plain"))
    forward = kind.forward

    def rooted(self: Method, views: dict, step: object) -> Losses:
        zero = (next(self.parameters()) * 0).sum()
        added = {name: x + zero.sqrt() for name, x in views.items() if x.ndim == 4 and step.update == 1}
        return forward(self, {**views, **added}, step)

    monkeypatch.setattr(kind, "forward", rooted)
    finding = replay(kept_run(tmp_path / "run", "finetune", "plain"))
    assert finding.stage == "backward" and finding.origin.module == "" and finding.origin.own_code
    assert finding.origin.operation == "SqrtBackward0"


def test_stated_labels_and_all_else_give_the_loss_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that no checkpoint holds says which labels may be looked at."""
    terms: dict[str, float] = {}
    forward = nn.Linear.forward

    def plant(tiny: Tiny) -> None:
        terms.update({name: float(x.detach()) for name, x in tiny.losses(1)[2].terms.items()})
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x) + (self.weight * 0).sum().sqrt())

    finding = replay(kept_run(tmp_path / "run", "distil", "labels", plant))
    assert finding.stage == "backward" and len(terms) > 1 and finding.terms == pytest.approx(terms, rel=1e-6)


def test_views_are_told_from_the_network_and_samples_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = build.method_class(tiny_recipe("finetune", "plain"))
    views = kind.views

    def poisoned(self: Method, batch: dict, step: object) -> dict[str, torch.Tensor]:
        made = views(self, batch, step)
        image = next(x for x in made.values() if x.is_floating_point() and x.ndim == 4)
        image[3] += math.nan if step.update == 1 else 0
        return made

    monkeypatch.setattr(kind, "views", poisoned)
    run = kept_run(tmp_path / "run", "finetune", "plain")
    finding = replay(run, 1)
    assert finding.stage == "views" and finding.samples == (read_kept(run).keys(0)[0]["train"][3],)
    assert finding.lines()[0].startswith("first in the views")


def test_what_is_finite_here_is_said_with_the_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = build.method_class(tiny_recipe("rotnet", "all"))
    forward = kind.forward
    with monkeypatch.context() as patch:  # as a kernel of another machine would
        patch.setattr(kind, "forward", lambda self, views, step: Losses({"loss": forward(
            self, views, step).terms.popitem()[1] * (math.nan if step.update else 1)}))
        run = kept_run(tmp_path / "run", "rotnet", "all")
    file = run / FOLDER / "update-00000001" / "update.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "device": "cuda", "precision": "fp16"}))
    (line,) = replay(run).lines()
    assert line == ("everything is finite here: the run was on cuda in fp16, this is cpu in fp32. "
                    "The run saw rank 0: loss/loss, gradient")


def poisoned_on_rank_1(number: int, run: Path) -> None:
    """Keep an update in which the views of the second process were bad; its features reach the loss of both."""
    _poison_rank_1()
    kept_run(run, "simclrv2", "plain")


def _poison_rank_1() -> None:
    kind = build.method_class(tiny_recipe("simclrv2", "plain"))
    forward = kind.forward

    def poisoned(self: Method, views: dict, step: object) -> Losses:
        if self.info.rank == 1 and step.update == 1:
            name, x = next((name, x) for name, x in views.items() if x.is_floating_point())
            views = {**views, name: x * 3e38 * 3e38}
        return forward(self, views, step)

    kind.forward = poisoned


def test_of_two_processes_the_one_that_gave_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run_processes(2, poisoned_on_rank_1, run)
    kind = build.method_class(tiny_recipe("simclrv2", "plain"))
    monkeypatch.setattr(kind, "forward", kind.forward)  # is put back afterwards
    _poison_rank_1()
    kept = read_kept(run)
    assert all(kept.about["nonfinite"]), "both see it, for features are gathered"
    assert set(kept.keys(0)[0]["train"]).isdisjoint(kept.keys(1)[0]["train"])
    finding = replay(run)
    assert finding.share == "rank 1 of 2" and finding.stage == "forward"


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_run_keeps_it_and_names_the_command(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    kind = build.method_class(tiny_recipe("rotnet", "all"))
    forward = kind.forward

    def poisoned(self: Method, views: dict, step: object) -> Losses:
        losses = forward(self, views, step)
        bad = math.nan if step.update in (2, 3) else 1
        return replace(losses, terms={name: term * bad for name, term in losses.terms.items()})

    monkeypatch.setattr(kind, "forward", poisoned)
    recipe, run = tiny_recipe("rotnet", "all", [f"train.nonfinite={what}"]), tmp_path / "run"
    if what == "stop":
        with pytest.raises(UserError) as caught:
            train(recipe, run)
        said = str(caught.value).splitlines()
        assert len(said) == 2 and said[0].startswith("non-finite at update 2: loss/")
        line = said[1]
    else:
        assert train(recipe, run).finished
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "unlabeled replay" in line]
    assert f"kept ({run}/{FOLDER}/update-00000002, " in line and f"unlabeled replay {run} update=2 says" in line
    assert [path.name for path in (run / FOLDER).iterdir()] == ["update-00000002"]
    assert main(["replay", str(run)]) == 0
    out = capsys.readouterr().out
    assert "first in the loss: " in out and f"written: {run}/{FOLDER}/update-00000002/replay.json" in out
    assert main(["replay", str(run), "update=3"]) == 2
    assert "has not kept update 3; kept: 2" in capsys.readouterr().err


def test_only_the_first_few_are_kept_and_damage_is_one_line(tmp_path: Path) -> None:
    def plant(tiny: Tiny) -> None:
        convolution(tiny.updater.method)[1].weight.data.fill_(math.nan)

    run = kept_run(tmp_path / "run", "rotnet", "all", plant)
    tiny = tiny_run(tiny_recipe("rotnet", "all"))
    micros, method = tiny.micros(0), tiny.updater.method
    sources = {name: stream.source for name, stream in build.open_data(tiny.updater.recipe).items()}
    said = [keep_update(run, method, micros, sources, {"update": update}) for update in (1, 5, 6, 7)]
    assert [bool(line) for line in said] == [True, True, True, False]
    assert sorted(path.name[-1] for path in (run / FOLDER).iterdir()) == ["1", "5", "6"]
    file = run / FOLDER / "update-00000001" / "weights.pt"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"weights.pt is damaged: its hash differs"):
        replay(run, 1)
    with pytest.raises(UserError, match=r"update.json is damaged: 'seed' is missing"):
        replay(run, 5)
    with pytest.raises(UserError, match="has kept no update for a replay"):
        replay(tmp_path)
