"""CVRL against arrays computed with the published code (TensorFlow) and in float64."""

from __future__ import annotations

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Case, close, tensor
from processes import run_processes
from torch import Tensor, nn

from unlabeled.augment.color import OPERATIONS
from unlabeled.augment.photometric import Blur, Chosen, Drawn, Jitter, render
from unlabeled.augment.plain_crops import EdgeCrop
from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.config.read import read_protocol
from unlabeled.data.clips import ClipPair, EvenClips, Interval, Spacing, even_starts, offsets
from unlabeled.engine.plan import learning_rate
from unlabeled.evaluation.setup import shown, views_of
from unlabeled.methods.base import Export, Input
from unlabeled.methods.cvrl.method import partner_metrics
from unlabeled.methods.simclrv2 import Contrast, normalize, nt_xent
from unlabeled.ops.boxes import crop_columns

KINDS = ("cvrl_loss", "cvrl_augment", "cvrl_schedule", "cvrl_interval", "cvrl_test_views")
DTYPES = pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float64, "_f64", 1e-9),
                                                                    (torch.float32, "_f32", 1e-5)], ids=str)


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


# ---- loss


def contrast(case: Case, dtype: torch.dtype) -> tuple[Tensor, Contrast]:
    projections = tensor(case["projection_view1_then_view2"], dtype).requires_grad_()
    z1, z2 = projections.chunk(2)
    return projections, nt_xent(normalize(z1), normalize(z2), float(case["temperature"]))


@parametrize("cvrl_loss")
@DTYPES
def test_loss(case: Case, dtype: torch.dtype, suffix: str, tolerance: float) -> None:
    projections, result = contrast(case, dtype)
    assert len(projections) == 2 * int(case["batch_size"])
    expected = {"loss": result.loss, "loss_a": result.view1.mean(), "loss_b": result.view2.mean()}
    metrics = partner_metrics(result.logits)
    expected |= {"acc": metrics["contrast_accuracy"], "entropy": metrics["contrast_entropy"],
                 "grad_projection": torch.autograd.grad(result.loss, projections)[0]}  # fmt: skip
    for name, value in expected.items():
        # the published accuracy is a float32
        close(value, case[f"{name}{suffix}"], rel=1e-6 if name == "acc" else tolerance, abs=tolerance)


@parametrize("cvrl_loss")
def test_loss_of_every_anchor(case: Case) -> None:
    _, result = contrast(case, torch.float64)
    close(result.view1, case["per_anchor_ce_view1_f64"], abs=1e-9)
    close(result.view2, case["per_anchor_ce_view2_f64"], abs=1e-9)
    close(result.loss, 2 * case["ntxent_mean_over_2B_f64"], abs=1e-9)


def replica(rank: int, case: Case) -> tuple[float, np.ndarray]:
    """What process `rank` computes of its slice of the videos."""
    views = tensor(case["projection_view1_then_view2"]).unflatten(0, (2, -1))
    mine = views.unflatten(1, (int(case["num_replicas"]), -1))[:, rank].clone().requires_grad_()
    loss = nt_xent(normalize(mine[0]), normalize(mine[1]), float(case["temperature"])).loss
    loss.backward()
    return float(loss), mine.grad.numpy()


@parametrize("cvrl_loss")
def test_loss_over_processes(case: Case) -> None:
    count = int(case["num_replicas"])
    losses, gradients = zip(*run_processes(count, replica, case), strict=True)
    close(np.array(losses), case["replica_losses_f64"], abs=1e-9)
    close(np.mean(losses), case["loss_f64"], abs=1e-9)
    whole = np.concatenate(gradients, 1).reshape(case["grad_projection_f64"].shape) / count  # as DDP averages
    close(whole, case["grad_projection_f64"], rel=1e-9, abs=1e-9)


# ---- augmentation


def done(case: Case, **steps: object) -> Tensor:
    """Return the clip (T, H, W, C) of the case after these steps of the chain."""
    clip = torch.from_numpy(case["clip"]).permute(3, 0, 1, 2)[None]
    taps = 2 * (int(case["blur_kernel_size_requested"]) // 2) + 1
    return render(clip, Drawn(**steps), "simclr", taps=taps)[0].permute(1, 2, 3, 0)


def colours(case: Case, *names: str) -> Jitter:
    """Return the jitter of a single clip with the case's amounts of these operations, in this order."""
    stored = {"hue": "hue_delta"}
    neutral = {"hue": 0.0}
    amounts = {name: float(case[stored.get(name, f"{name}_factor")]) if name in names else neutral.get(name, 1.0)
               for name in OPERATIONS}
    order = [*names, *(name for name in OPERATIONS if name not in names)]
    return Jitter(torch.tensor([True]), torch.tensor([[OPERATIONS.index(name) for name in order]]),
                  **{name: torch.tensor([amount], dtype=torch.float64) for name, amount in amounts.items()})


@parametrize("cvrl_augment")
def test_colours(case: Case) -> None:
    for name in OPERATIONS:
        close(done(case, jitter=colours(case, name)), case[f"after_{name}"], abs=5e-6 if name == "hue" else 2e-6)
    chain = [name for name in case if name.startswith("after_") and name.count("_") == len(OPERATIONS)]
    assert chain
    for name in chain:
        close(done(case, jitter=colours(case, *name.split("_")[1:])), case[name], abs=5e-6)


@parametrize("cvrl_augment")
def test_gray_blur_and_solarize(case: Case) -> None:
    chosen = torch.tensor([True])
    close(done(case, gray=Chosen(chosen)), case["after_grayscale"], abs=2e-6)
    close(done(case, blur=Blur(chosen, torch.from_numpy(case["blur_sigma"][None]))), case["after_blur"], abs=2e-6)
    close(done(case, solarize=Chosen(chosen)), case["after_solarize"], abs=2e-6)


# ---- learning rate


@parametrize("cvrl_schedule")
def test_learning_rate(case: Case) -> None:
    base, total, warmup = float(case["initial_learning_rate"]), int(case["decay_steps"]), int(case["warmup_steps"])
    rate = LearningRate(base=base, count_from="start", warmup_start=float(case["warmup_learning_rate"]) / base)
    curve = learning_rate(Optim(name="sgd", lr=rate), 1024, total, warmup, per_epoch=1)
    rates = [curve.at(update) for update in range(total + 1)]
    close(np.array(rates), case["learning_rate_per_step"], rel=1e-12, abs=1e-18)
    assert rates[0] == 0 and rates[-1] == 0 and 0 < rates[warmup] < base


@parametrize("cvrl_schedule")
def test_learning_rate_of_the_linear_protocol(case: Case) -> None:
    """The same curve from 32, over its own 100 epochs of which 5 warm up."""
    cfg = read_protocol("video-linear")
    total, warmup = int(case["decay_steps"]), int(case["warmup_steps"])
    curve = learning_rate(cfg.optim, cfg.data.batch, total, warmup, per_epoch=1)
    rates = np.array([curve.at(update) for update in range(total + 1)])
    close(rates / 32, case["learning_rate_per_step"] / float(case["initial_learning_rate"]), rel=1e-12, abs=1e-18)
    assert (cfg.epochs, cfg.optim.warmup_epochs, cfg.data.batch) == (100, 5, 1024)
    assert (cfg.optim.name, cfg.optim.momentum, cfg.optim.nesterov, cfg.optim.weight_decay) == ("sgd", 0.9, False, 0)


def part(case: Case, prefix: str) -> Case:
    return {name.removeprefix(f"{prefix}."): array for name, array in case.items() if name.startswith(f"{prefix}.")}


# ---- clips


@parametrize("cvrl_interval")
def test_clips_of_a_pair(case: Case) -> None:
    for number in range(int(case["num_cases"])):
        one = part(case, f"case{number}")
        length, frames, stride = (int(one[name]) for name in ("video_frames", "clip_frames", "frame_stride"))
        room = int(one["max_offset_T"])
        assert offsets(length, frames, stride) == room
        for power in case["powers"].tolist():
            close(Interval(power).pmf(room), one[f"pmf_power{power:g}"], abs=1e-12)
        assert [Interval(1.0).gap(u, room) for u in one["u"].tolist()] == one["delta"].tolist()
        draws = np.column_stack([one["u"], one["v"], np.where(one["swap"], 0.75, 0.25)])
        pair = ClipPair(frames, stride, 1.0)
        assert [list(pair.starts(draw, length, stride)) for draw in draws] == one["start_of_clip1_clip2"].tolist()
        places = pair.places(draws, np.full(len(draws), length), np.zeros(len(draws)))
        assert np.array_equal(places, one["frame_indices_clip1_clip2"])


@parametrize("cvrl_test_views")
def test_views_at_test(case: Case) -> None:
    frames, stride, count = (int(case[name]) for name in ("clip_frames", "frame_stride", "num_clips"))
    videos = sorted({name.partition(".")[0] for name in case if name.startswith("video")})
    assert videos
    for video in videos:
        one = part(case, video)
        length = int(one["frames"])
        assert even_starts(length, frames, stride, count).tolist() == one["clip_starts"].tolist()
        places = EvenClips(frames, stride, count).places(np.empty((1, 0)), np.array([length]), np.zeros(1))
        assert np.array_equal(places[0], one["frame_indices"])
    for place in range(3):
        crop = EdgeCrop(int(case["crop_size"]), place)
        box = crop_columns(crop.draw(np.empty((len(case["input_height_width"]), 0)), case["input_height_width"]))
        resized = np.column_stack([box.image_height, box.image_width])
        assert np.array_equal(resized, case["resized_height_width"])
        assert np.array_equal(np.column_stack([box.top, box.left]), case["crop_top_left_3"][:, place])


@pytest.mark.parametrize("protocol", ["video-linear", "finetune-video", "finetune-video-1pct"])
@parametrize("cvrl_test_views")
def test_views_of_the_protocols(case: Case, protocol: str) -> None:
    """A network of any other clips and size is tested on 30 views: its classifier is asked as published."""
    cfg = read_protocol(protocol)
    export = shown(Export(nn.Identity, "logits", Input(112, clip=Spacing(16, 4))), cfg.size, cfg.clip)
    views = views_of(export, cfg.clip)
    one, sizes = part(case, "video0"), case["input_height_width"]
    for place, view in enumerate(views):
        assert view.shape == (3, 32, 256, 256)
        assert np.array_equal(view.clips.places(np.empty((1, 0)), one["frames"][None], np.zeros(1))[0],
                              one["frame_indices"])
        box = crop_columns(view.draw(np.empty((len(sizes), 0)), sizes))
        assert np.array_equal(np.column_stack([box.top, box.left]), case["crop_top_left_3"][:, place])
    assert len(views) == 3 and cfg.method.crop.size == 224 and cfg.method.crop.area == (0.3, 1.0)


@pytest.mark.parametrize("law", ["decreasing", "uniform", "increasing"])
def test_gaps_follow_their_law(law) -> None:
    interval = Interval(2.0, law)
    pmf = interval.pmf(50)
    assert abs(pmf.sum() - 1) < 1e-12
    if law != "increasing":
        assert (np.diff(pmf) < 1e-15).all()
    drawn = np.bincount([interval.gap(u, 50) for u in np.random.default_rng(0).random(100_000).tolist()], minlength=50)
    expected = 100_000 * pmf
    assert ((drawn - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(2 * 49)  # chi-square of 49 degrees of freedom
