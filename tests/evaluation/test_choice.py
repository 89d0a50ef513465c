"""Of many classifiers held-out training images choose one, which the test images score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.fakes import Noise
from torch import Tensor, nn

from unlabeled.config.read import read_card, read_protocol, read_recipe
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import open_part
from unlabeled.data.streams import open_streams
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation import choice
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.seeds import evaluate_seeds
from unlabeled.evaluation.trained import recipe_on
from unlabeled.methods.base import Export, Input

QUICK = ["workers=0", "data.batch=64", "data.epoch_samples=640", "epochs=4", "method.lr=[0.1, 1.0, 4.0]",
         "method.crop={area: [0.6, 1.0]}"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    settings = ["backbone.width=0.125", "train.epochs=null", "train.updates=30", "data.train.batch=16", "eval.every=0",
                "eval.at_end=[]", "optim.warmup_epochs=0", "optim.lr.base=0.01"]
    assert train(read_recipe("demo/simclrv2", settings), folder).finished
    return folder


class Told(Noise):
    """Images whose first pixel tells their class and whether they are `test` images."""

    def __init__(self, n: int, test: bool) -> None:
        super().__init__(n)
        self.pixels[:, 0, 0, 0], self.pixels[:, 0, 0, 1] = self.labels, test


class Answers(nn.Module):
    """K classifiers: the first is right on every `right[0]`-th training and `right[1]`-th test image, and so on."""

    def __init__(self, right: list[tuple[float, float]]) -> None:
        super().__init__()
        self.right = torch.tensor(right)

    def forward(self, x: Tensor) -> Tensor:
        label, test = (x[:, :2, 0, 0] * 255).round().long().unbind(1)
        place = x[:, 2].flatten(1).sum(1)  # noise: a number that differs from image to image
        share = self.right.T[test]
        return (label[:, None] ^ (place.frac()[:, None] >= share)).float()


class Grid:
    """Stands in for a trained grid of the first so many classifiers."""

    def __init__(self, right: list[tuple[float, float]]) -> None:
        self.right = right
        self.choices = [("last", lr) for lr in (0.1, 0.2, 0.5)][: len(right)]

    def verdicts(self) -> Export:
        return Export(lambda: Answers(self.right), "vector", Input(8))

    def classifier(self, chosen: tuple[str, float]) -> Export:
        one = self.right[self.choices.index(chosen)]

        def build() -> nn.Module:
            answers = Answers([one])
            answers.register_forward_hook(lambda module, x, y: nn.functional.one_hot(y[:, 0].long(), 2).float())
            return answers

        return Export(build, "logits", Input(8))


def judged(right: list[tuple[float, float]]) -> dict:
    cfg = read_protocol("linear-grid", ["workers=0", "held_out=0.5"])
    return choice.choose_and_score(Grid(right), cfg, Told(80, False), Told(40, True), CPU)[0]["linear"]


def test_the_best_on_held_out_images_counts_and_not_the_best_on_test() -> None:
    score = judged([(0.2, 1.0), (1.0, 0.0), (0.5, 0.5)])
    assert score.value == 0.0 and score.details["held_out"] == 100.0 and score.details["lr"] == 0.2
    every = score.details["classifiers"]
    assert list(every) == ["last lr 0.1", "last lr 0.2", "last lr 0.5"]
    assert every["last lr 0.1"]["test"] == 100.0 and 0 < every["last lr 0.1"]["held_out"] < 60
    assert "note" not in score.details and score.details["features"] == "last"


def test_of_equal_ones_the_first_counts_and_the_end_of_the_grid_is_told() -> None:
    score = judged([(1.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
    assert score.value == 100.0 and score.details["note"] == "the chosen lr is at the end of the grid"
    assert "note" not in judged([(1.0, 1.0)]).details  # a grid of one rate has no end


def test_images_choose_and_are_scored_at_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: set[int] = set()
    monkeypatch.setattr(Answers, "forward",
                        lambda self, x: sides.add(x.shape[-1]) or torch.zeros(len(x), len(self.right)))
    cfg = read_protocol("linear-grid", ["workers=0", "held_out=0.5", "size=12"])
    choice.choose_and_score(Grid([(0.2, 1.0), (1.0, 0.0)]), cfg, Told(80, False), Told(40, True), CPU)
    assert sides == {12}


def test_what_chooses_is_not_learnt(run: Path) -> None:
    cfg = read_protocol("linear-grid", [*QUICK, "held_out=0.2", "seed=3"])
    recipe = recipe_on(cfg, load_run(run), open_source(read_card("digits"), "train"))
    learnt = open_streams(recipe)["train"].source
    held = open_part(learnt.source, None, choice.held_out_rule(cfg))
    assert sorted([*learnt.indices, *held.indices]) == list(range(1297))
    shares = np.bincount(held.labels) / np.bincount(learnt.source.labels)
    assert np.abs(shares - 0.2).max() < 0.005
    other = choice.held_out_rule(cfg.model_copy(update={"seed": 4}))
    assert set(open_part(learnt.source, None, other).indices) != set(held.indices)


def test_the_grid_learns_is_recorded_whole_and_goes_on(run: Path, capsys) -> None:
    settings = [*QUICK, "held_out=0.2"]
    report = evaluate("linear-grid", run, settings)
    assert [number.name for number in report.numbers] == ["linear", "linear top-5"]
    number = report["linear"]
    assert number.network["value"] > 2 * number.chance and number.random_init["value"] > number.chance
    details = number.network["details"]
    assert len(details["classifiers"]) == 3
    chosen = details["classifiers"][f"{details['features']} lr {details['lr']:g}"]
    assert chosen == {"held_out": pytest.approx(details["held_out"], abs=0.01), "test": number.network["value"]}
    assert chosen["held_out"] == max(one["held_out"] for one in details["classifiers"].values())
    folder = run / "eval" / report.name
    backbone = load_run(run).method.backbone.state_dict()
    kept = load_run(folder).method.exports()["backbone"].build().state_dict()
    assert all(torch.equal(kept[name], value) for name, value in backbone.items())
    saved = json.loads((run / "eval" / f"{report.name}-update00000030.json").read_text())
    assert saved["numbers"][0]["random_init"]["details"]["classifiers"].keys() == details["classifiers"].keys()
    capsys.readouterr()
    again = evaluate("linear-grid", run, settings)
    printed = capsys.readouterr().out
    assert again.numbers == report.numbers and "is finished" in printed
    assert f"linear: {details['features']}, lr {details['lr']:g}, held_out" in printed and "classifiers" not in printed


def test_every_seed_holds_out_other_images(run: Path) -> None:
    settings = [*QUICK, "held_out=0.2", "random_init=false", "epochs=1"]
    reports = evaluate_seeds("linear-grid", run, settings, range(2))
    recipes = [load_run(run / "eval" / report.name).recipe for report in reports]
    assert [(r.train.seed, r.data.train.subset.seed, r.data.train.subset.complement) for r in recipes] == [
        (0, 0, True), (1, 1, True)]


@pytest.mark.parametrize("name, override, said", [
    ("linear-grid", "held_out=null", "missing key 'held_out': of the classifiers of method 'linear-grid' one is"),
    ("linear-sgd", "held_out=0.1", "'held_out' has no effect with method 'probe'"),
    ("linear-grid", "data.subset={share: 0.5}", "give either 'held_out' or 'data.subset'"),
    ("linear-grid", "held_out=1.0", "held_out"),
])
def test_what_does_not_fit_together_is_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_protocol(name, [override])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_of_one_image_cannot_choose() -> None:
    cfg = read_protocol("linear-grid")
    cfg.check([2, 3], ["a", "b"])
    with pytest.raises(UserError, match="but class 'b' has fewer than two labelled ones; use the protocol linear-sgd"):
        cfg.check([2, 1], ["a", "b"])
