"""Dataset reinforcement: which labels are read, what plain images become, what is refused; its loss from the start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_recipe, tiny_run

from unlabeled.augment.replay.render import render
from unlabeled.config.passes.reinforce import KIND
from unlabeled.config.read import read_recipe
from unlabeled.engine import build
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.methods.reinforcement import method
from unlabeled.methods.reinforcement.method import Reinforcement
from unlabeled.ops.targets.top_classes import densify


def override(**options: object) -> list[str]:
    return [f"method.{key}={'null' if value is None else value}" for key, value in options.items()]


def test_a_student_that_says_nothing_has_the_entropy_as_its_loss() -> None:
    tiny = tiny_run(tiny_recipe("reinforcement", "mixed"))
    linear = tiny.updater.method.classifier.linear
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    views, _, losses = tiny.losses(0)
    target = views["target"].double()
    entropy = float(-torch.special.xlogy(target, target).sum(1).mean())
    assert float(losses.terms["divergence"].detach()) == pytest.approx(math.log(10) - entropy, abs=1e-5)


def test_targets_are_the_stored_probabilities_and_views_the_stored_views() -> None:
    tiny = tiny_run(tiny_recipe("reinforcement", "mixed"))
    (micro,) = tiny.micros(3)
    rows = micro["train"].records[KIND]
    views = tiny.updater.views(3, 0, micro)
    assert torch.equal(views["target"], densify(rows["prob"], rows["class"], 10))
    again = tiny.updater.views(4, 0, micro)
    assert torch.equal(again["view"], views["view"]), "nothing is drawn"


def test_plain_images_have_their_label_and_a_new_view() -> None:
    tiny = tiny_run(tiny_recipe("reinforcement", "plain"))
    (micro,) = tiny.micros(0)
    batch = micro["train"]
    plain = batch.records[KIND]["entry"] < 0
    assert 0 < int(plain.sum()) < len(plain)
    first, second = (tiny.updater.views(update, 0, micro) for update in (0, 1))
    label = torch.nn.functional.one_hot(batch.label[plain], 10).float()
    assert torch.equal(first["target"][plain], label)
    assert not torch.equal(first["view"][plain], second["view"][plain])
    assert torch.equal(first["view"][~plain], second["view"][~plain])


def test_a_plain_image_without_a_label_does_not_count() -> None:
    tiny = tiny_run(tiny_recipe("reinforcement", "plain"))
    (micro,) = tiny.micros(0)
    plain = micro["train"].records[KIND]["entry"] < 0
    micro["train"].label[plain] = -1
    views = tiny.updater.views(0, 0, micro)
    assert float(views["target"][plain].abs().sum()) == 0
    assert int(tiny.updater.method.counts(views)["images"]) == int((~plain).sum())


@pytest.mark.parametrize(("options", "labels", "records"), [
    ({"replay": 0.99}, True, True),
    ({"replay": 1.0}, False, True),
    ({"replay": 1.0, "targets": "label"}, True, True),
    ({"replay": 0.0}, True, False),
])  # fmt: skip
def test_only_plain_images_read_labels(options: dict[str, object], labels: bool, records: bool) -> None:
    cfg = Reinforcement.Config(**options)
    (stream,) = Reinforcement.streams(cfg).values()
    assert (stream.labels, bool(stream.records)) == (labels, records)


def _tiny_backbone(source: str | None = None) -> torch.nn.Module:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    network.num_features, network.input, network.gives = 4, None, None
    return network


def test_without_plain_images_no_label_is_needed() -> None:
    """The classes are then those that the store counts."""
    recipe = tiny_recipe("reinforcement", "plain", ["method.replay=1.0"])
    opened = build.open_data(recipe)
    source = opened["train"].source
    source.labels = source.classes = None
    info = build.make_info(recipe, opened)
    assert info.classes is None
    assert build.method_class(recipe)(recipe.method, _tiny_backbone, info).classes == 10


def test_no_replay_is_plain_training() -> None:
    """The same views and targets as a visit that replays nothing."""
    augmented = override(randaugment="{}", erasing=0.5)
    none = tiny_run(tiny_recipe("reinforcement", "none", augmented))
    some = tiny_run(tiny_recipe("reinforcement", "plain", augmented))
    (alone,), (micro,) = none.micros(0), some.micros(0)
    assert alone["train"].records == {}
    views, expected = some.updater.views(0, 0, micro), none.updater.views(0, 0, alone)
    assert torch.equal(expected["target"], torch.nn.functional.one_hot(alone["train"].label, 10).float())
    plain = micro["train"].records[KIND]["entry"] < 0
    assert 0 < int(plain.sum()) < len(plain)
    assert torch.equal(views["target"][plain], expected["target"][plain])
    assert torch.equal(views["view"][plain], expected["view"][plain])
    assert not torch.equal(views["view"][~plain], expected["view"][~plain])


def test_the_usual_augmentation_is_computed_of_plain_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_run(tiny_recipe("reinforcement", "plain"))
    (micro,) = tiny.micros(0)
    seen: list[int] = []

    def counted(crops: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(len(crops))
        return render(crops, *more)

    monkeypatch.setattr(method, "render", counted)
    tiny.updater.views(0, 0, micro)
    assert seen == [int((micro["train"].records[KIND]["entry"] < 0).sum())]


def test_a_batch_without_plain_images_is_replayed() -> None:
    tiny = tiny_run(tiny_recipe("reinforcement", "plain"))
    (micro,) = tiny.micros(0)
    rows = micro["train"].records[KIND]
    rows["entry"].clamp_min_(0)
    views = tiny.updater.views(0, 0, micro)
    assert torch.equal(views["target"], densify(rows["prob"], rows["class"], 10))


def test_the_store_counts_when_the_run_is_read_again() -> None:
    """A method is built again from `run.json`, without its data."""
    recipe = tiny_recipe("reinforcement", "mixed")
    info = build.make_info(recipe, build.open_data(recipe))
    again = build.info_from_record(build.info_record(info), 0)
    assert again.streams["train"].records[KIND]["crop"]["size"] == 8


@pytest.mark.parametrize(("variant", "options", "message"), [
    ("plain", {"crop.size": 10}, r"method.crop.size is 10, but the stored views have 8.*give method.crop.size=8"),
    ("plain", {"crop": "{size: 8}"}, r"method.crop.kind is resized, but the stored views have padded, and 3 more differ"
                                     r".*give 'method.crop=\{kind: padded, size: 8, pad: 4, border: black\}'"),
    ("plain", {"crop.border": "reflect"}, "method.crop.border is reflect, but the stored views have black"),
    ("plain", {"crop.size": 10, "crop.pad": 2}, r"and 1 more differ, .*method.crop.size=8 method.crop.pad=4, or make"),
    ("plain", {"crop.pad": 2}, "method.crop.pad is 2, but the stored views have 4"),
    ("plain", {"crop.resize": 16}, "method.crop.resize is 16, but the stored views have null"),
    ("mixed", {"crop.interpolation": "bicubic"}, "interpolation is bicubic, but the stored views have bilinear"),
    ("mixed", {"mix": "false"}, "mixed with a second image, so say method.mix=true"),
    ("plain", {"mix": "true", "replay": 1.0}, "not mixed, so say method.mix=false"),
])  # fmt: skip
def test_views_of_another_form_are_refused(variant: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_run(tiny_recipe("reinforcement", variant, override(**options)))


@pytest.mark.parametrize(("options", "message"), [
    ({"targets": "label", "mix": "true"}, "no label for targets: label"),
    ({"replay": 0.0, "mix": "true"}, "'mix' has no effect with replay: 0"),
    ({"replay": 0.0, "targets": "label"}, "'targets' has no effect with replay: 0"),
    ({"replay": 1.0, "erasing": 0.1}, "'erasing' has no effect with replay: 1"),
    ({"crop": "{kind: square, size: 8}"}, "kind"),
])  # fmt: skip
def test_options_without_a_user_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe("demo/reinforcement", ["method={name: reinforcement}", *override(**options)])


def test_a_store_is_asked_for_by_name(tmp_path: Path) -> None:
    recipe = tiny_recipe("reinforcement", "plain", ["data.train.records={}"])
    with pytest.raises(UserError, match=r"make them with unlabeled reinforce, then .*records.reinforcement=FOLDER"):
        train(recipe, tmp_path / "run")
