"""Detection transfer: the detectors, their training and scoring, on rendered shapes at tiny size."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.processes import lock_held_by_another, run_processes
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.config.card import Card
from unlabeled.config.protocols.detection import Detection
from unlabeled.config.read import read_protocol, read_recipe
from unlabeled.config.recipe import Backbone
from unlabeled.data.detection_batches import TrainMaker
from unlabeled.data.sources.open import open_source
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.lock import RunLock
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.dense import detection
from unlabeled.evaluation.dense.detection_network import Stages, build_detector
from unlabeled.evaluation.dense.detection_train import learning_rate, train_detector
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.methods.base import Input

CPU = torch.device("cpu")
SMALL = ["train_sizes=[48]", "size=48", "longest=48", "images_per_update=4", "steps=[]", "warmup=4", "precise_bn=2",
         "regions=16", "workers=0"]
CARD = {"name": "few", "source": {"kind": "shapes", "size": 48, "objects": [1, 2]},
        "splits": {"train": {"samples": 4}, "val": {"samples": 3}}, "in_memory": True}


def protocol(neck: str = "fpn", *more: str) -> Detection:
    fields = read_protocol("detection-shapes", [*SMALL, "width=16", *more]).model_dump(mode="json")
    if neck == "c4":
        del fields["width"]
    return Detection.model_validate_json(json.dumps({**fields, "neck": neck}))


def small_network(name: str = "resnet18", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(Backbone(name=name, **({"width": 0.125, "stem": "cifar"} | options)))


def few(split: str = "train") -> object:
    return open_source(Card.model_validate(CARD), split)


@pytest.mark.slow
@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_a_few_images_are_learned_with_boxes_and_masks(neck: str, tmp_path: Path) -> None:
    cfg, source = protocol(neck, "masks=true", "updates=60"), few()
    model = build_detector(small_network(), cfg, 10, Input(48))
    assert train_detector(model, cfg, source, tmp_path, "x") == []
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 20, 40, 59]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"} < lines[0].keys()
    found, corrupt = detection.detect(model, cfg, source, CPU)
    assert sorted(found) == [0, 1, 2, 3] and not corrupt
    splits = detection.BoxedSplits(Card.model_validate(CARD), source, source, source.object_classes)
    scores = detection.score(splits, found, cfg)
    assert scores["AP50"].value > 5 and scores["mask AP50"].value > 5


def test_the_c4_head_is_layer4_with_one_more_norm_and_all_weights_are_the_networks() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = build_detector(network, protocol("c4", "masks=true"), 10, Input(48))
    head = model.roi_heads.box_head.network
    assert model.roi_heads.mask_head is head and list(dict(head.named_children())) == ["layer4", "norm"]
    assert isinstance(head.norm, nn.BatchNorm2d) and head.norm.num_features == 64
    after = dict(model.backbone.network.state_dict()) | {f"layer4.{k}": v for k, v in head.layer4.state_dict().items()}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters())
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    out = model.backbone(torch.zeros(1, 3, 48, 48))
    assert list(out) == ["0"] and out["0"].shape == (1, 32, 12, 12)


def test_the_pyramid_has_norms_and_five_levels_on_the_networks_own_strides() -> None:
    model = build_detector(small_network(), protocol("fpn", "masks=true"), 10, Input(48))
    levels = model.backbone(torch.zeros(1, 3, 48, 48))
    assert {name: x.shape[-1] for name, x in levels.items()} == {"0": 48, "1": 24, "2": 12, "3": 6, "pool": 3}
    for part, count in ((model.backbone.fpn, 8), (model.roi_heads.box_head, 4), (model.roi_heads.mask_head, 4)):
        assert sum(isinstance(module, nn.BatchNorm2d) for module in part.modules()) == count
    assert sum(isinstance(module, nn.Linear) for module in model.roi_heads.box_head.modules()) == 1


def test_weights_behind_the_maps_are_frozen_and_networks_without_maps_refused() -> None:
    network = build_backbone(Backbone(name="mobilenetv3_small_050"))
    stages = Stages(network, ["blocks.0", "blocks.1", "blocks.2"])
    assert not network.conv_head.weight.requires_grad and network.conv_stem.weight.requires_grad
    assert stages.stride == 16
    assert all(p.grad is None for p in network.parameters())
    for name, neck, message in (("wrn28_2", "fpn", "needs 4 stages; this WideResNet has group1"),
                                ("mobilenetv3_small_050", "c4", "needs a ResNet, with layer3 and layer4"),
                                ("vit_tiny_patch16_224", "fpn", "takes no images of any size"),
                                ("nin", "fpn", "no maps, each half as large")):
        with pytest.raises(UserError, match=message):
            build_detector(build_backbone(Backbone(name=name)), protocol(neck), 10, Input(48))


def test_the_schedules_are_those_of_the_text() -> None:
    voc = read_protocol("detection-voc-c4")
    assert learning_rate(0, voc) == pytest.approx(2e-5)
    assert learning_rate(50, voc) == pytest.approx(0.02 * 0.5005)
    assert [learning_rate(u, voc) for u in (100, 17999, 18000, 22000, 23999)] == pytest.approx(
        [0.02, 0.02, 0.002, 0.0002, 0.0002])
    assert (voc.updates, voc.recall_levels, voc.masks, voc.neck) == (24000, 11, False, "c4")
    assert voc.train_sizes == list(range(480, 801, 32)) and voc.proposals_test == (6000, 1000)
    for name, neck in (("detection-coco-c4", "c4"), ("detection-coco-fpn", "fpn")):
        coco = read_protocol(name)
        assert (coco.updates, coco.steps, coco.warmup, coco.neck) == (90000, [60000, 80000], 1000, neck)
        assert coco.train_sizes == list(range(640, 801, 32)) and coco.masks and coco.recall_levels == 101
        assert (coco.images_per_update, coco.size, coco.lr, coco.weight_decay) == (16, 800, 0.02, 1e-4)
    assert read_protocol("detection-coco-fpn").proposals_train == (2000, 1000)


@pytest.mark.parametrize(("settings", "message"), [
    (["updates=50"], r"steps rise and lie before updates=50; got \[80\]"),
    (["anchors=[8,16]"], "fpn has five levels"),
    (["neck=c4"], "'width' has no effect with c4"),
    (["neck=c5"], "'neck' is 'c5'"),
])
def test_settings_that_do_not_fit_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_protocol("detection-shapes", settings)


class Crash(Exception):
    pass


@pytest.mark.slow
def test_a_training_that_was_cut_short_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch, capsys) -> None:
    cfg, source = protocol("fpn", "updates=5", "checkpoint_every=2"), few()

    def new() -> nn.Module:
        torch.manual_seed(1)
        return build_detector(small_network(), cfg, 10, Input(48))

    whole = new()
    train_detector(whole, cfg, source, tmp_path / "whole", "x")
    steps, step = [], torch.optim.SGD.step

    def crash(self, *args: object) -> None:
        if len(steps) == 3:
            raise Crash
        steps.append(0)
        step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(torch.optim.SGD, "step", crash)
        train_detector(new(), cfg, source, tmp_path / "cut", "x")
    with pytest.raises(UserError, match="was begun with other training images"):
        train_detector(new(), cfg, few("val"), tmp_path / "cut", "x")
    capsys.readouterr()
    again = new()
    train_detector(again, cfg, source, tmp_path / "cut", "x")
    assert "going on from update 2" in capsys.readouterr().out
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert any("running_mean" in name for name in expected)
    with pytest.raises(UserError, match="holds a training with other settings or of another network"):
        train_detector(new(), cfg.model_copy(update={"lr": 0.5}), source, tmp_path / "cut", "x")
    with pytest.raises(UserError, match="other settings or of another network"):
        train_detector(new(), cfg, source, tmp_path / "cut", "y")


def test_a_training_is_not_joined_by_a_second_one(tmp_path: Path, monkeypatch) -> None:
    cfg = protocol("fpn", "updates=5")
    monkeypatch.setattr(RunLock, "take", functools.partialmethod(RunLock.take, patience=0.3))
    with lock_held_by_another(tmp_path), pytest.raises(UserError, match="is being trained by process"):
        train_detector(build_detector(small_network(), cfg, 10, Input(48)), cfg, few(), tmp_path, "x")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_precise_statistics_are_those_of_the_final_weights(tmp_path: Path) -> None:
    cfg, source = protocol("fpn", "updates=2"), few()
    running = build_detector(small_network(), cfg, 10, Input(48))
    precise = build_detector(small_network(), cfg, 10, Input(48))
    train_detector(running, cfg.model_copy(update={"precise_bn": 0}), source, tmp_path / "a", "x")
    train_detector(precise, cfg, source, tmp_path / "b", "x")
    assert all(torch.equal(a, b) for a, b in zip(running.parameters(), precise.parameters(), strict=True))
    norm = precise.backbone.stages.network.bn1
    assert norm.num_batches_tracked == 2 and norm.momentum == 0.1
    # both batches hold all four images, in other orders, and half of them flipped: their mean is the images' own
    with torch.no_grad():
        images = torch.stack([torch.from_numpy(source.image(i)).permute(2, 0, 1) for i in range(4)]).float() / 255
        both = torch.cat([images, images.flip(3)])
        mean = precise.backbone.stages.network.conv1(both).mean((0, 2, 3))
    before = running.backbone.stages.network.bn1.running_mean
    assert (norm.running_mean - mean).abs().max() < 0.02 < (before - mean).abs().max()


def test_a_loss_that_is_not_finite_ends_the_training_with_a_cure(tmp_path: Path) -> None:
    cfg = protocol("fpn", "updates=3")
    model = build_detector(small_network(), cfg, 10, Input(48))
    nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, float("inf"))
    with pytest.raises(UserError, match=r"non-finite at update 0 .*take a lower lr or more warmup"):
        train_detector(model, cfg, few(), tmp_path, "x")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(read_recipe("demo/simclrv2-shapes", ["backbone.width=0.125", "train.epochs=null", "train.updates=1",
                                                      "data.train.batch=4", "eval.every=0", "eval.at_end=[]",
                                                      "method.crop.size=24", "optim.warmup_epochs=0"]), folder).finished
    (folder.parent / "few.yaml").write_text(json.dumps(CARD))
    return folder


def test_the_protocol_reports_the_network_and_its_random_twin(run: Path, capsys) -> None:
    settings = [*SMALL, "width=16", "updates=2", f"card={run.parent / 'few.yaml'}"]
    report = evaluate("detection-shapes", run, settings)
    assert [number.name for number in report.numbers] == ["AP", "AP50", "AP75"]
    assert all(number.chance == 0 and number.random_init is not None for number in report.numbers)
    assert (report.train.n, report.test.n, report.classes, report.measure) == (4, 3, 10, "average precision")
    assert json.loads((run / "eval" / f"{report.name}-update00000001.json").read_text())["numbers"]
    assert (run / "eval" / f"{report.name}-random-init" / "metrics.jsonl").exists()
    assert load_run(run).update == 1
    capsys.readouterr()
    again = evaluate("detection-shapes", run, [*settings, "batch=3"])
    assert capsys.readouterr().out.count("is finished") == 2
    assert again.numbers == report.numbers


def test_what_cannot_be_used_is_said(run: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"data card 'digits' has no boxes; choose one that has, such as card=shapes96"):
        evaluate("detection-shapes", run, ["card=digits"])
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'unlabeled\[detection\]'"):
        evaluate("detection-shapes", run, ["updates=90"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_asked_of_boxes_alone_are_refused_when_opened(run: Path, tmp_path: Path, split: str) -> None:
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (48, 48)).save(tmp_path / part / "x.jpg")
        note = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20],
                "segmentation": [] if part == split else [[1, 1, 20, 1, 20, 20]]}
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps({
            "images": [{"id": 1, "file_name": "x.jpg", "height": 48, "width": 48}], "annotations": [note],
            "categories": [{"id": 1, "name": "dog"}]}))
    (tmp_path / "boxes.yaml").write_text(json.dumps({
        "name": "boxes", "source": {"kind": "coco-boxes"}, "root": str(tmp_path), "splits": {"train": {}, "val": {}}}))
    with pytest.raises(UserError, match=r"data card 'boxes' has boxes but no masks of objects \(.*"
                                        rf"instances_{split}\.json, annotation 5: no segmentation\); use masks=false"):
        detection.open_boxed(protocol("fpn", "masks=true", f"card={tmp_path / 'boxes.yaml'}"), load_run(run))
    opened = detection.open_boxed(protocol("fpn", f"card={tmp_path / 'boxes.yaml'}"), load_run(run))
    assert opened.train.objects(0).boxes.tolist() == opened.test.objects(0).boxes.tolist() == [[1, 1, 21, 21]]


def in_a_process(rank: int, folder: Path) -> tuple[list[int], list[float], list[list[float]], list[int]]:
    """Train two updates, detect: images found, sums of weights and statistics, boxes of the first, images learned."""
    cfg, source = protocol("fpn", "updates=2", "lr=0.001"), few()
    model = build_detector(small_network(), cfg, 10, Input(48))
    learned, make = [], TrainMaker.make
    TrainMaker.make = lambda maker, unit: learned.append(make(maker, unit)) or learned[-1]
    train_detector(model, cfg, source, folder, "x")
    found, _ = detection.detect(model, cfg, few("val"), CPU)
    sums = [float(value.double().sum()) for value in model.state_dict().values()]
    return sorted(found), sums, found[min(found)].boxes.tolist(), learned[0].index


@pytest.mark.slow
def test_two_processes_share_the_images_and_hold_the_same_network(tmp_path: Path) -> None:
    first, second = run_processes(2, in_a_process, tmp_path)
    assert first[0] == [0, 1, 2] and second[0] == [1, 2]  # rank 0 gets all, others their part
    assert first[1] == second[1]
    assert first[3] and len({*first[3], *second[3]}) == len(first[3] + second[3]), "of an update each its own"
    model = build_detector(small_network(), protocol("fpn", "updates=2", "lr=0.001"), 10, Input(48))
    state = torch.load(next((tmp_path / "checkpoints").glob("*.pt")), weights_only=True)
    model.load_state_dict(state["model"])
    alone, _ = detection.detect(model, protocol("fpn", "updates=2"), few("val"), CPU)
    assert sorted(alone) == [0, 1, 2]
    assert torch.allclose(torch.from_numpy(alone[0].boxes), torch.tensor(first[2]), atol=1e-3)
