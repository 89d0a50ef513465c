"""Probes and fine-tuning on clips of videos: what they read, what becomes of maps over time, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_recipe, tiny_run
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.intermediate import outputs
from unlabeled.config.augment import Clip, ResizedCrop
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Backbone
from unlabeled.data.clips import RandomClip, Spacing
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, Input, StreamInfo
from unlabeled.methods.classifier import Classifier, labelled
from unlabeled.methods.finetune import Finetune
from unlabeled.methods.finetune_config import FinetuneConfig
from unlabeled.methods.probe.config import LinearHead, ProbeConfig
from unlabeled.methods.probe.grid import LinearGrid
from unlabeled.methods.probe.grid_config import LinearGridConfig
from unlabeled.methods.probe.heads import build_head
from unlabeled.methods.probe.method import Features, Probe

CLIP, SIZE = Clip(frames=4, stride=3), 16
CROP = ResizedCrop(size=SIZE)
INFO = Info(0, 0, 1, 3, {"train": StreamInfo(100, 6)}, (0.5,) * 3, (0.2,) * 3)
KINDS = [(Finetune, FinetuneConfig), (Probe, ProbeConfig), (LinearGrid, LinearGridConfig)]


def network(image: Input | None = None) -> Any:
    """Return a network for clips as it comes from a run that has exported it for such an input."""
    torch.manual_seed(0)
    built: Any = build_backbone(Backbone(name="r3d_tiny"))
    built.gives, built.input = "vector", image
    return built


@pytest.mark.parametrize(("kind", "config"), KINDS, ids=lambda x: x.__name__)
def test_clips_are_read_with_their_labels_and_exports_say_so(kind: Any, config: Any) -> None:
    cfg = config(clip=CLIP, crop=CROP)
    stream = kind.streams(cfg)["train"]
    assert stream.clips == RandomClip(4, 3) and stream.labels and len(stream.crops) == 1
    exports = kind(cfg, lambda: network(Input(8, clip=Spacing(8, 2))), INFO).exports()
    for export in exports.values():
        assert export.input == Input(SIZE, clip=Spacing(4, 3))  # a network in [0, 1] stays so, whatever the card says
        width = 256 if export.gives == "vector" else 3
        assert export.build()(torch.rand(2, 3, 4, SIZE, SIZE)).shape == (2, width)
    assert kind.streams(config(crop=CROP))["train"].clips is None


def test_a_training_clip_starts_anywhere_in_its_video() -> None:
    clips = labelled(CROP, Clip(frames=1)).clips
    frames = clips.places(np.linspace(0, 0.999, 50)[:, None], np.full(50, 10), np.zeros(50))
    assert frames.shape == (50, 1, 1) and set(frames.ravel().tolist()) == set(range(10))
    assert labelled(CROP, Clip(frames=4, per_second=5.0)).clips == RandomClip(4, 2, per_second=5.0)


def test_inner_maps_of_clips_are_averaged_over_their_time() -> None:
    built, x = network().eval(), torch.rand(2, 3, 8, SIZE, SIZE)
    with torch.no_grad():
        features = Features(built, ["layer1", None])(x)
        layer1 = outputs(built, ["layer1"], x)["layer1"]
        assert layer1.ndim == 5 and layer1.shape[2] == 4
        torch.testing.assert_close(features["layer1"], layer1.mean(2))
        assert torch.equal(features[None], built(x))
    probe = Probe(ProbeConfig(clip=CLIP, crop=CROP, heads={"a": {"block": "layer1", "pool": 2}}), network, INFO)
    assert probe.exports()["a"].build()(torch.rand(2, 3, 4, SIZE, SIZE)).shape == (2, 3)


def test_features_are_scaled_to_length_one_before_the_classifier() -> None:
    head = build_head(LinearHead(normalize=True), (5,), 3)
    linear = head[-1]
    nn.init.normal_(linear.weight)
    x = torch.randn(4, 5)
    torch.testing.assert_close(head(x), linear(F.normalize(x)))
    torch.testing.assert_close(head(7 * x), head(x))
    assert torch.equal(head(torch.zeros(1, 5))[0], linear.bias)
    assert head[:-1](x.bfloat16()).dtype == torch.float32
    on_map = build_head(LinearHead(block="layer1", normalize=True), (5, 2, 2), 3)
    maps = torch.randn(4, 5, 2, 2)
    torch.testing.assert_close(on_map[:-1](maps), F.normalize(maps.mean((2, 3))))  # the mean, and then its length
    with pytest.raises(ValueError, match="give either norm or normalize"):
        LinearHead(norm=True, normalize=True)


def test_dropout_is_of_the_features_in_training_alone() -> None:
    classifier = Classifier(network(), 3, 0.5)
    classifier.network = nn.Flatten()
    classifier.linear = nn.Identity()
    x = torch.ones(50, 40)
    assert set(classifier(x).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(classifier.eval()(x), x)


def test_the_frozen_network_learns_nothing_of_clips() -> None:
    run = tiny_run(tiny_recipe("probe", "clips"))
    frozen = run.updater.method.features.network.network
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    run.train(0, 2)
    assert not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


@pytest.mark.parametrize("option", ["randaugment: {}", "erasing: 0.5", "mixup: 0.8", "cutmix: 1.0"])
def test_changes_of_single_images_are_refused(option: str) -> None:
    method = f"method={{name: finetune, clip: {{frames: 4}}, crop: {{size: 16}}, {option}}}"
    key = option.partition(":")[0]
    with pytest.raises(UserError, match=f"method.{key} changes images and not clips; leave it out"):
        tiny_run(tiny_recipe("finetune", "clips", [method]))


def test_recipes_say_which_clips() -> None:
    images = "method={name: finetune, crop: {size: 16}}"
    with pytest.raises(UserError, match=r"method 'finetune' reads images, and 'r3d_tiny' is a network for clips of "
                                        r"video; say which clips with method.clip=.*, or \{frames: 1\} for single"):
        read_recipe("demo/cvrl", [images])
    with pytest.raises(UserError, match="method 'finetune' needs a video backbone; 'resnet18' offers: map"):
        read_recipe("demo/cvrl", ["method={name: finetune, clip: {frames: 4}}", "backbone={name: resnet18}"])
    assert read_recipe("demo/cvrl", ["method={name: finetune, clip: {frames: 1}}"]).method.clip.frames == 1
