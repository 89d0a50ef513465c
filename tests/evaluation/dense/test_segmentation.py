"""Segmentation: mIoU against a loop, the linear head against torch's own, and the fully convolutional one."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.evaluation.dense.fakes import Blocks, MapRuns, Still, painted, scene_runs, scenes
from tests.processes import run_processes

from unlabeled.config.protocols.dense import SegmentationFcn, SegmentationLinear
from unlabeled.engine.run import progress
from unlabeled.errors import UserError
from unlabeled.evaluation.dense import segmentation_fcn, segmentation_linear
from unlabeled.evaluation.dense.segmentation import class_iou, confusion, constant_miou, score
from unlabeled.evaluation.dense.segmentation_linear import Maps
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.ops.random import generator, permutation

CPU = torch.device("cpu")


def linear(**values) -> SegmentationLinear:
    return SegmentationLinear(**{"protocol": "segmentation-linear", "workers": 0, "lr": [0.1, 1.0], "min_updates": 60,
                                 "epochs": 1} | values)


def fcn(**values) -> SegmentationFcn:
    return SegmentationFcn(**{"protocol": "segmentation-fcn", "workers": 0, "updates": 3, "width": 16,
                              "images_per_update": 4, "scale": (1.0, 1.0)} | values)


# ---- the measure


def naive_iou(predicted: np.ndarray, mask: np.ndarray, classes: int) -> list[float]:
    found = []
    for each in range(classes):
        both = either = 0
        for guess, truth in zip(predicted.flat, mask.flat, strict=True):
            if truth != 255:
                both += guess == truth == each
                either += each in (guess, truth)
        found.append(both / either if either else float("nan"))
    return found


def test_iou_is_that_of_a_loop_over_pixels():
    random = np.random.default_rng(0)
    mask = random.choice([0, 1, 2, 4, 255], (3, 9, 7)).astype(np.uint8)  # 3 is absent, 5 wrongly predicted
    predicted = random.choice([0, 1, 2, 4, 5], (3, 9, 7))
    counts = sum(confusion(torch.from_numpy(p), torch.from_numpy(m), 7) for p, m in zip(predicted, mask, strict=True))
    expected = naive_iou(predicted, mask, 7)
    np.testing.assert_allclose(class_iou(counts).numpy(), expected)
    assert np.isnan(expected[3]) and np.isnan(expected[6]) and expected[5] == 0
    found = score(counts, list("abcdefg"), {"lr": 1.0})
    assert found.value == pytest.approx(100 * np.nanmean(expected))
    assert found.details["iou"]["d"] is None and found.details["iou"]["a"] == round(100 * expected[0], 2)
    assert found.details["pixel accuracy"] == round(100 * float((predicted == mask)[mask != 255].mean()), 2)


def test_chance_is_the_best_of_all_constant_answers():
    mask = torch.from_numpy(np.random.default_rng(0).choice([0, 0, 1, 3, 3, 3, 255], (40, 40)).astype(np.uint8))
    constant = [confusion(torch.full_like(mask, each), mask, 5) for each in range(5)]
    best = max(100 * float(class_iou(counts).nanmean()) for counts in constant)
    assert constant_miou(constant[2]) == pytest.approx(best)


# ---- the linear head


def test_features_at_pixels_are_those_of_the_upsampled_map():
    maps = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    pixels = torch.stack([torch.randperm(17 * 17, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    full = F.interpolate(maps, size=(17, 17), mode="bilinear", align_corners=False).flatten(2)
    expected = full.gather(2, pixels[:, None].expand(-1, 4, -1)).mT
    torch.testing.assert_close(segmentation_linear.at_pixels(maps, pixels, 17), expected, rtol=1e-5, atol=1e-6)


def test_training_is_that_of_a_convolution_whose_logits_are_upsampled():
    draw = torch.Generator().manual_seed(0)
    maps = Maps(torch.randn(6, 4, 3, 3, generator=draw), torch.randint(0, 3, (6, 8, 8), generator=draw).byte())
    maps.mask[:, :4, 0] = 255
    cfg = linear(images_per_update=6, pixels_per_image=20, min_updates=4, weight_decay=0.01)
    settings = [(0.1, 0.01), (1.0, 0.01)]
    found = segmentation_linear.fit(cfg, maps, np.arange(6), 3, settings, CPU)
    for number, (lr, decay) in enumerate(settings):
        layer = torch.nn.Conv2d(4, 3, 1)
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        for update in range(4):
            order = torch.from_numpy(permutation(6, 0, "segmentation-linear", "order", update))
            drawn = torch.randint(64, (6, 20), generator=generator(0, "segmentation-linear", "pixels", update))
            full = F.interpolate(layer(maps.x[order]), size=(8, 8), mode="bilinear", align_corners=False).flatten(2)
            target = maps.mask[order].flatten(1).gather(1, drawn).long()
            optimizer.zero_grad()
            F.cross_entropy(full.gather(2, drawn[:, None].expand(-1, 3, -1)), target, ignore_index=255).backward()
            optimizer.step()
            schedule.step()
        part = slice(number * 3, number * 3 + 3)
        torch.testing.assert_close(found.weight.T[part], layer.weight.detach()[:, :, 0, 0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.bias[part], layer.bias.detach(), rtol=1e-4, atol=1e-6)


def test_standardised_maps_have_mean_zero_and_deviation_one_over_all_cells():
    x = 5 + 3 * torch.randn(600, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 7.0  # a channel that never changes
    before = x.clone()
    mean, std = segmentation_linear.standardise(x)
    torch.testing.assert_close(mean.flatten(), before.mean((0, 2, 3)))
    torch.testing.assert_close(x[:, :2].std((0, 2, 3), correction=0), torch.ones(2))
    assert float(std[0, 2]) == 1 and bool((x[:, 2] == 0).all())


def test_features_that_tell_the_class_score_100_and_equal_ones_what_a_constant_scores():
    network, splits = painted(Blocks(1))
    found, counts, (train, test) = segmentation_linear.judge(linear(), network, splits, CPU)
    assert found.value == pytest.approx(100) and set(found.details["iou"].values()) == {100.0}
    assert int(counts.sum()) == 5 * (144 - 3) and (train.n, test.n) == (12, 5)
    network, splits = painted(Still(2))
    found, counts, _ = segmentation_linear.judge(linear(), network, splits, CPU)
    assert found.value == pytest.approx(constant_miou(counts)) and 10 < found.value < 20


def test_unreadable_images_are_left_out_and_named():
    network, splits = painted(Blocks(2), bad=(1, 4))
    _, counts, (train, test) = segmentation_linear.judge(linear(), network, splits, CPU)
    assert (train.n, train.corrupt_keys) == (10, ["train-1", "train-4"])
    assert (test.n, test.corrupt_keys) == (3, ["val-1", "val-4"]) and int(counts.sum()) == 3 * (144 - 3)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MapRuns:
    return scene_runs(monkeypatch, tmp_path, train=40, val=12)


QUICK = ["workers=0", "card=scenes.yaml", "min_updates=60", "epochs=1", "lr=[0.3,1.0]"]


def test_the_report_holds_miou_per_class_and_the_baselines(runs, monkeypatch, capsys):
    report = evaluate("segmentation-linear", runs.run, QUICK)
    number = report["mIoU"]
    source = scenes(12, 32)
    masks = np.stack([source.mask(index) for index in range(12)])
    shares = np.bincount(masks.flatten()) / masks.size
    assert number.chance == pytest.approx(100 * shares.max() / (shares > 0).sum())
    assert number.network["value"] != number.random_init["value"]
    saved = json.loads(next((runs.run / "eval").glob("segmentation-linear-*.json")).read_text())
    details = saved["numbers"][0]["network"]["details"]
    assert saved["classes"] == 11 and details["lr"] in (0.3, 1.0) and saved["measure"] == "mIoU"
    assert list(details["iou"])[:2] == ["background", "disc"] and details["iou"]["background"] > 50
    assert (saved["train"]["n"], saved["test"]["n"], saved["test"]["split"]) == (40, 12, "val")
    printed = capsys.readouterr().out
    assert "mIoU, %" in printed and "pixel accuracy" in printed and "'disc'" not in printed
    monkeypatch.setattr(progress, "PASS_AFTER", 0.0)
    assert evaluate("segmentation-linear", runs.run, [*QUICK, "batch=5"]).numbers == report.numbers
    printed = capsys.readouterr().out
    for text in ("maps of 'train' of 'scenes': 5 of 40 images, ", "linear classifiers: 0 of 60 updates\n"):
        assert text in printed


def test_what_cannot_be_segmented_is_refused(runs):
    with pytest.raises(UserError, match=r"data card 'digits' has no masks; choose one that has, such as card=shapes96"):
        evaluate("segmentation-linear", runs.run, ["card=digits"])
    with pytest.raises(UserError, match=r"gives logits and no map"):
        evaluate("segmentation-linear", runs.run, [*QUICK, "export=classifier"])
    with pytest.raises(UserError, match=r"map of 1 x 1 cells for images of 7 x 7"):
        evaluate("segmentation-fcn", runs.run, ["card=scenes.yaml", "size=7"])
    with pytest.raises(UserError, match=r"dilated_stages belongs to ResNets"):
        evaluate("segmentation-fcn", runs.run, ["card=scenes.yaml", "dilated_stages=1"])
    runs.write_card(Path("one.yaml"), train=1, val=2)
    with pytest.raises(UserError, match=r"one image is too few"):
        evaluate("segmentation-linear", runs.run, ["card=one.yaml"])


# ---- the fully convolutional head


def test_the_fcn_learns_and_a_frozen_backbone_stays_as_it_is():
    network, splits = painted(Blocks(1))
    cfg = fcn(updates=60, lr=0.1)
    model, missed = segmentation_fcn.learn(cfg, network, splits, CPU)
    counts, test = segmentation_fcn.judge(cfg, model, network, splits, CPU)
    assert int(counts.sum()) == 5 * (144 - 3) and test.n == 5 and missed == []
    assert score(counts, splits.names, {}).value > 60 > 2 * constant_miou(counts)
    assert float(network.map.network.scale.detach()) != 1
    frozen, splits = painted(Blocks(1))
    model, _ = segmentation_fcn.learn(fcn(backbone="frozen"), frozen, splits, CPU)
    assert float(frozen.map.network.scale.detach()) == 1
    assert model.train().head.training and not model.backbone.training  # nor do its statistics move


def test_one_update_of_the_fcn_is_that_of_plain_torch():
    (network, splits), (again, _) = painted(Blocks(2)), painted(Blocks(2))
    model, _ = segmentation_fcn.learn(fcn(updates=1, lr=0.5, drops=[]), network, splits, CPU)
    torch.manual_seed(segmentation_fcn.seed_of(0, "segmentation-fcn", "head"))
    other = segmentation_fcn.Fcn(again.map, 6, fcn(), 4).train()
    optimizer = torch.optim.SGD(other.parameters(), 0.5, 0.9, weight_decay=1e-4)
    crop = segmentation_fcn.JointCrop(12, (1.0, 1.0), (128, 128, 128))
    batch = next(iter(segmentation_fcn.training_crops(splits.train, crop, 0, 1, 4, 0, 1, 0)))
    full = F.interpolate(other(again.prepare(batch.images)), size=(12, 12), mode="bilinear", align_corners=False)
    F.cross_entropy(full, batch.masks.long(), ignore_index=255).backward()
    optimizer.step()
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_the_lr_falls_to_a_tenth_twice(monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o, *a: seen.append(o.param_groups[0]["lr"]) or step(o, *a))
    segmentation_fcn.learn(fcn(updates=10, lr=1e-3), *painted(Blocks(2)), CPU)
    np.testing.assert_allclose(seen, [1e-3] * 7 + [1e-4] * 2 + [1e-5])


def test_a_loss_that_is_not_finite_stops_with_a_sentence():
    network, splits = painted(Blocks(2))
    torch.nn.init.constant_(network.map.network.scale, float("inf"))
    with pytest.raises(UserError, match=r"loss is not finite at update 0; lower lr \(0.01\)"):
        segmentation_fcn.learn(fcn(), network, splits, CPU)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_stages_are_those_of_timm(name, stages):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = timm.create_model(name, num_classes=0).eval()
    theirs = timm.create_model(name, num_classes=0, output_stride=32 // 2**stages).eval()
    theirs.load_state_dict(ours.state_dict())
    segmentation_fcn.dilate(ours, stages)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = ours.forward_features(x), theirs.forward_features(x)
    assert found.shape[2] == 2 * 2**stages
    torch.testing.assert_close(found, expected)


def test_the_fcn_reports_through_the_command(runs, monkeypatch, capsys):
    settings = ["workers=0", "card=scenes.yaml", "updates=4", "width=8", "images_per_update=4", "backbone=frozen"]
    report = evaluate("segmentation-fcn", runs.run, settings)
    assert report["mIoU"].network["details"]["iou"]["background"] is not None
    assert report["mIoU"].random_init is not None and report.test.n == 12
    monkeypatch.setattr(progress, "PASS_AFTER", 0.0)
    assert evaluate("segmentation-fcn", runs.run, [*settings, "batch=5"]).numbers == report.numbers
    printed = capsys.readouterr().out
    for text in ("segmentation-fcn: 1 of 4 updates, ", "segmentation of 'val' of 'scenes': 5 of 12 images, "):
        assert text in printed


# ---- several processes


def in_a_process(rank: int, bad: tuple[int, ...]) -> tuple[list, list, list]:
    network, splits = painted(Blocks(2), bad=bad)
    found, counts, (train, test) = segmentation_linear.judge(linear(), network, splits, CPU)
    network, splits = painted(Blocks(2), bad=bad)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        model, missed = segmentation_fcn.learn(fcn(lr=0.1), network, splits, CPU)
    losses = [float(line.rpartition(" ")[2]) for line in said.getvalue().splitlines() if "loss" in line]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [counts.tolist(), found.value, train.corrupt_keys, test.n, missed], weights.tolist(), losses


def test_two_processes_give_the_numbers_of_one():
    alone, weights, losses = in_a_process(0, (4,))
    first, second = run_processes(2, in_a_process, (4,))
    assert len(losses) == 3 and first[2] == pytest.approx(losses, abs=1e-3) and second[2] == []
    for together, others, _ in (first, second):
        np.testing.assert_allclose(np.array(together[0]), np.array(alone[0]), atol=2)  # sums in another order
        assert together[2:] == alone[2:]
        np.testing.assert_allclose(others, weights, rtol=1e-4, atol=1e-5)
