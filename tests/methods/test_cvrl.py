"""CVRL's closed forms, views and options (the arrays of the published code are tested in tests/golden)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import tiny_recipe
from torch import Tensor, nn

from unlabeled.augment.photometric import to_float
from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.sizes import refuse_images
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Backbone
from unlabeled.data.batch import Batch
from unlabeled.data.clips import Spacing
from unlabeled.engine import build
from unlabeled.engine.plan import make_plan
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, Input, Losses, Step, StreamInfo
from unlabeled.methods.cvrl.config import CVRLConfig, Head
from unlabeled.methods.cvrl.method import CVRL, projection_head
from unlabeled.ops.random import generator

FRAMES, SIZE = 4, 32


def method(info: Info | None = None, image: Input | None = None, **options: Any) -> CVRL:
    """Return a tiny CVRL, always with the same weights; image: what its backbone was trained with."""

    def make_backbone() -> nn.Module:
        network: Any = build_backbone(Backbone(name="r3d_tiny"))
        network.gives, network.input = None, image
        return network

    torch.manual_seed(0)
    small = {"clip": {"frames": FRAMES}, "head": {"hidden": 16, "out_dim": 8}, "crop": {"size": SIZE}}
    info = info or Info(0, 0, 1, None, {"train": StreamInfo(100, 6)})
    return CVRL(CVRLConfig(**{**small, **options}), make_backbone, info)


def step(update: int = 0) -> Step:
    return Step(update, 10, 10, 0, 1, 10, 0.1, 0, generator("local", update), generator("shared", update))


def batch(videos: int, *, still: bool = False) -> dict[str, Batch]:
    """Return two equal clips of random videos; still: all frames of a clip are the same."""
    shape, random = (videos, 3, FRAMES, SIZE, SIZE), generator("clips", videos)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    clip = clip[:, :, :1].expand_as(clip).contiguous() if still else clip
    return {"train": Batch([clip, clip.clone()], [None, None], torch.arange(videos))}


def loss_of(cvrl: CVRL, views: dict[str, Tensor]) -> Losses:
    return cvrl(views, step())


def test_head_has_the_published_size_and_start() -> None:
    head = projection_head(2048, Head())
    assert sum(p.numel() for p in head.parameters()) == 12_863_616
    assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU"] * 3 + ["Linear"]
    for layer in head:
        if isinstance(layer, nn.Linear):
            assert not layer.bias.any()
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))  # Glorot's
            assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
        if isinstance(layer, nn.BatchNorm1d):
            assert (layer.eps, layer.momentum) == (1e-5, 0.003)


def test_views_are_the_same_change_of_every_frame_and_differ_between_clips() -> None:
    cvrl, still = method(), batch(6, still=True)
    for update in range(3):
        views = cvrl.views(still, step(update))
        for view in views.values():
            assert view.shape == (6, 3, FRAMES, SIZE, SIZE) and view.dtype == torch.float32
            assert view.min() >= 0 and view.max() <= 1
            assert torch.equal(view, view[:, :, :1].expand_as(view))
        assert all((a - b).abs().max() > 0.01 for a, b in zip(*views.values(), strict=True))


def test_every_frame_for_itself_is_the_ablation() -> None:
    cvrl, still = method(augment={"per_frame": True}), batch(6, still=True)
    for view in cvrl.views(still, step()).values():
        assert view.shape == (6, 3, FRAMES, SIZE, SIZE)
        assert ((view[:, :, 0] - view[:, :, 1]).abs().amax((1, 2, 3)) > 0.01).float().mean() > 0.6


def test_only_the_first_clip_is_always_blurred_and_only_the_second_solarized() -> None:
    """Without colours, of 200 clips: a checkerboard stays where nothing is done, and a white frame becomes black."""
    plain = {"jitter_p": 0, "gray_p": 0}
    board = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)).remainder(2).mul(255).to(torch.uint8)
    cvrl = method(augment=plain | {"solarize_p": (0, 0)})
    clip = board.expand(200, 3, 1, SIZE, SIZE)
    views = cvrl.views({"train": Batch([clip, clip], [None, None], torch.arange(200))}, step())
    blurred = [(view - to_float(clip)).abs().flatten(1).amax(1) > 1e-3 for view in views.values()]
    # below a deviation of about 0.15 pixels nothing is seen of a blur
    assert blurred[0].float().mean() > 0.9 and 0.04 < blurred[1].float().mean() < 0.17
    cvrl = method(augment=plain | {"blur_p": (0, 0)})
    views = cvrl.views({"train": Batch([torch.full_like(clip, 255)] * 2, [None, None], torch.arange(200))}, step())
    black = [(view == 0).flatten(1).all(1).float().mean() for view in views.values()]
    assert black[0] == 0 and 0.12 < black[1] < 0.28


@pytest.mark.parametrize("per_frame", [False, True])
def test_processes_see_their_rows_of_the_same_views(per_frame: bool) -> None:
    whole = method(augment={"per_frame": per_frame}).views(batch(6), step())
    for rank in range(2):
        rows = slice(3 * rank, 3 * rank + 3)
        info = Info(0, rank, 2, None, {"train": StreamInfo(100, 6)})
        clips = [clip[rows] for clip in batch(6)["train"].crops]
        part = {"train": Batch(clips, [None, None], torch.arange(3))}
        mine = method(info, augment={"per_frame": per_frame}).views(part, step())
        for name, view in mine.items():
            assert (view - whole[name][rows]).abs().max() < 1e-5


def test_both_clips_pass_the_network_at_once() -> None:
    cvrl, seen = method(), []
    cvrl.backbone.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[0]))
    cvrl.head.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[0]))
    losses = loss_of(cvrl, cvrl.views(batch(6), step()))
    assert seen == [12, 12]
    assert set(losses.terms) == {"contrast"} and set(losses.metrics) == {"contrast_accuracy", "contrast_entropy"}
    losses.terms["contrast"].backward()
    assert all(p.grad is not None for p in cvrl.parameters())
    # a kernel before a norm of the batch has no gradient along itself; all others must move
    assert all(p.grad.abs().max() > 0 for name, p in cvrl.named_parameters() if not name.endswith("bias"))


def test_the_loss_is_symmetric_and_knows_its_ends() -> None:
    cvrl = method().double()
    views = {name: view.double() for name, view in cvrl.views(batch(6), step()).items()}
    loss = float(loss_of(cvrl, views).terms["contrast"].detach())
    swapped = {"view1": views["view2"], "view2": views["view1"]}
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = {name: view[order] for name, view in views.items()}
    for other in (swapped, shuffled):
        assert float(loss_of(cvrl, other).terms["contrast"].detach()) == pytest.approx(loss, abs=1e-10)
    with torch.no_grad():
        cvrl.head[-1].weight.zero_()
        cvrl.head[-1].bias.fill_(1.0)  # all projections are the same
    same = loss_of(cvrl, views)
    assert float(same.terms["contrast"].detach()) == pytest.approx(2 * math.log(2 * 6 - 1))
    assert float(same.metrics["contrast_entropy"]) == pytest.approx(math.log(6), abs=1e-6)
    alone = loss_of(cvrl, {name: view[:1] for name, view in views.items()})
    assert float(alone.terms["contrast"].detach()) == 0


def test_the_export_is_the_backbone_for_values_from_0_to_1() -> None:
    cvrl = method()
    export = cvrl.exports()["backbone"]
    assert (export.gives, export.input.size, export.input.mean) == ("vector", SIZE, None)
    assert export.build()(torch.rand(2, 3, FRAMES, SIZE, SIZE)).shape == (2, cvrl.backbone.num_features)


def test_a_backbone_that_comes_with_mean_and_deviation_sees_them() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    card = Info(0, 0, 1, None, {"train": StreamInfo(100, 6)}, mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0))
    plain, other = method(card), method(card, Input(224, mean, std))
    views, normalised = (cvrl.views(batch(3), step()) for cvrl in (plain, other))
    clip = Spacing(FRAMES, 2)
    assert plain.input == Input(SIZE, clip=clip)
    assert other.exports()["backbone"].input == Input(SIZE, mean, std, clip)
    for name, view in views.items():
        statistics = torch.tensor([mean, std])[:, :, None, None, None]
        torch.testing.assert_close(normalised[name], (view - statistics[0]) / statistics[1])


# ---- options


def test_the_recipe_is_the_published_one() -> None:
    recipe = read_recipe("cvrl")
    assert recipe.method == CVRLConfig()
    optim, rate = recipe.optim, recipe.optim.lr
    assert (optim.name, rate.peak(1024), rate.count_from, optim.warmup_epochs) == ("sgd", 0.32, "start", 5)
    assert (optim.weight_decay, optim.momentum, optim.nesterov) == (1e-6, 0.9, False)
    assert set(optim.exclude_decay) == {"norm", "bias"}
    assert (recipe.data.train.batch, recipe.train.epochs, recipe.backbone.name) == (1024, 200, "r3d50")


def test_networks_for_clips_and_for_images_are_not_exchanged() -> None:
    with pytest.raises(UserError, match=r"method 'cvrl' needs a video backbone; 'resnet50' offers: map, stages. Video "
                                        r"ones: r3d50, r3d101, r3d152, r3d_tiny"):
        read_recipe("demo/cvrl", ["backbone={name: resnet50}"])
    with pytest.raises(UserError, match="method 'simclrv2' reads images, and 'r3d50' is a network for clips of video; "
                                        "take one for images, such as resnet50, or the method cvrl"):
        read_recipe("demo/simclrv2", ["backbone={name: r3d50}"])
    images = build_backbone(Backbone(name="resnet18", width=0.125))  # as one of timm's, which the reader does not know
    with pytest.raises(UserError, match=r"resnet18 takes no clips of 4 frames of 32 x 32: .*; a network for clips is"):
        refuse_images(images, {SIZE: "method.crop.size"}, "resnet18", frames=FRAMES)


def test_one_video_is_told_from_none() -> None:
    with pytest.raises(UserError, match="a video is told from the others of its batch, and one has none"):
        read_recipe("demo/cvrl", ["data.train.batch=1"])


def test_clips_that_loader_processes_decode_are_the_same_after_a_resume_within_an_epoch() -> None:
    recipe = tiny_recipe("cvrl", "plain", ["data.workers=2", "data.train.batch=8", "train.updates=7"])  # 5 an epoch
    opened = build.open_data(recipe)
    plan = make_plan(recipe, "train", len(opened["train"].source), 1)

    def clips(start: int, workers: int) -> list[Tensor]:
        data = recipe.data.model_copy(update={"workers": workers})
        (stream,) = build.train_streams(recipe.model_copy(update={"data": data}), opened, plan).values()
        return [torch.stack(micro.crops) for (micro,) in stream.updates(start, 7)]

    whole = clips(0, 0)
    for start, workers in ((0, 2), (3, 2)):
        assert all(torch.equal(*pair) for pair in zip(clips(start, workers), whole[start:], strict=True))
