"""Networks for images measured as networks for clips, without training; networks for clips by image protocols."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data.toy_videos import write_classes
from tiny import tiny_recipe

from unlabeled.backbones.video.inflate import still
from unlabeled.backbones.video.r3d import R3D
from unlabeled.config.read import read_protocol
from unlabeled.data.clips import Spacing
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation import evaluate as module
from unlabeled.evaluation.evaluate import evaluate, evaluate_many
from unlabeled.evaluation.setup import pick_export, protocol_export

QUICK = ["workers=0", "raw_pixels=false"]
SGD = ["workers=0", "data.batch=128", "epochs=1", "optim.lr.base=0.1", "method.crop={kind: padded}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits of a ResNet-50 for images."""
    folder = tmp_path_factory.mktemp("runs") / "images"
    recipe = tiny_recipe("finetune", "plain", ["backbone={name: resnet50, width: 0.125}", "train.updates=1"])
    assert train(recipe, folder).finished
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("videos"), each=2)


def test_a_protocol_measures_the_inflated_network_on_its_own_inputs(run: Path) -> None:
    restored = load_run(run)
    name, export = protocol_export(read_protocol("knn", ["inflate=r3d50"]), restored)
    _, flat = pick_export(restored.method, "backbone")
    network = export.build()
    assert name == "backbone" and flat.input.mean is not None
    assert export.input == replace(flat.input, clip=Spacing(16, 2))
    longer = read_protocol("knn", ["inflate=r3d50", "size=24", "clip.frames=32"])
    assert protocol_export(longer, restored)[1].input == replace(flat.input, size=24, clip=Spacing(32, 2))
    assert isinstance(network, R3D) and not network.training and network.num_features == 256
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(still(network)(x), flat.build()(x), rtol=1e-4, atol=1e-5)


def test_the_untrained_baseline_is_drawn_once(run: Path) -> None:
    blank, cfg = load_run(run, random_init=True), read_protocol("knn", ["inflate=r3d50"])
    one, other = (protocol_export(cfg, blank, weights=False)[1].build().state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(one["conv1.weight"][:, :, 0], one["conv1.weight"][:, :, 1])


def test_its_numbers_have_a_name_and_a_baseline_of_their_own(run: Path, videos: Path, tmp_path: Path, capsys,
                                                             monkeypatch) -> None:
    kernels, real = [], module.network_embedder
    monkeypatch.setattr(module, "network_embedder", lambda export, *more: (
        kernels.append(export.build().layer3[0].conv1.weight), real(export, *more))[1])
    inflated = tmp_path / "clips.yaml"
    inflated.write_text("protocol: knn\nk: [2]\ninflate: r3d50\nclip: {frames: 4, count: 2}\n")
    common = [*QUICK, "k=[2]", "card=classvideos", f"root={videos}", "size=16"]
    plain, both = evaluate_many(["knn", inflated], run, common)
    capsys.readouterr()
    assert both.export == "backbone inflated to r3d50" and plain.export == "backbone"
    assert both.health != plain.health
    alike = [module.Job("knn", read_protocol("knn", options)).shares for options in ([], ["inflate=r3d50"])]
    assert alike[0] != alike[1], "two networks, not one extraction"
    assert both.health["network"]["width"] == both.health["random_init"]["width"] == 256
    assert both.test.n == 4 and both.test.corrupt == 0
    named = evaluate("knn", run, [*common, "inflate=r3d50", "clip.frames=4", "clip.count=2", "keep_features=false"])
    trained, untrained = (bool((kernel == kernel[:, :, :1]).all()) for kernel in kernels[-2:])
    assert trained and not untrained, "the baseline is the 3D network's own start"
    assert "-inflate=r3d50-" in named.name and named.numbers == both.numbers, "the same random weights each time"
    assert "finetune, export backbone inflated to r3d50, update 1" in capsys.readouterr().out
    assert (run / "eval" / f"{named.name}-update{named.update:08d}.json").is_file()


def test_a_probe_trains_on_the_inflated_network(run: Path) -> None:
    report = evaluate("linear-sgd", run, [*SGD, "inflate=r3d50"])
    assert report.export == "backbone inflated to r3d50"
    for folder, weights in ((report.name, True), (f"{report.name}-random-init", False)):
        probe = load_run(run / "eval" / folder)
        backbone = probe.recipe.backbone
        assert (backbone.name, backbone.width, backbone.init_weights) == ("r3d50", 0.125, weights)
        kernel = probe.method.features.network.network.layer3[0].conv1.weight
        assert torch.equal(kernel[:, :, 0], kernel[:, :, 1]) == weights


def test_what_does_not_fit_is_refused_before_anything_is_read(run: Path) -> None:
    with pytest.raises(UserError, match=r"images:backbone' cannot be inflated into r3d101: .* take r3d50"):
        evaluate("knn", run, [*QUICK, "inflate=r3d101"])
    with pytest.raises(UserError, match="gives logits, and r3d50 is inflated from what gives vectors"):
        evaluate("knn", run, [*QUICK, "inflate=r3d50", "export=classifier"])
    with pytest.raises(UserError, match="'inflate' is 'r3d50'; allowed"):
        read_protocol("detection-shapes", ["inflate=r3d50"])


def test_a_probe_trains_on_single_frames_of_a_network_for_clips(tmp_path: Path) -> None:
    video = tmp_path / "video"
    assert train(tiny_recipe("cvrl", "plain", ["train.updates=1"]), video).finished
    for protocol, options in (("knn", QUICK), ("linear-sgd", SGD)):
        with pytest.raises(UserError, match=r"inflate=r3d50: .*video is a network for clips already, r3d_tiny"):
            evaluate(protocol, video, [*options, "card=digits", "inflate=r3d50"])
    report = evaluate("linear-sgd", video, [*SGD, "card=digits", "random_init=false"])
    probe = load_run(video / "eval" / report.name)
    assert probe.recipe.backbone.name == "r3d_tiny" and report["linear"].network["value"] > 0
    assert probe.method.exports()["linear"].input.mean is None, "in [0, 1], as CVRL saw its clips"
