"""SSLD: closed forms of the loss, one view, no labels, the teacher's statistics, two stages, what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import teacher, tiny_case, tiny_recipe, tiny_run
from torch import Tensor, nn

from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, StreamInfo
from unlabeled.methods.classifier import Classifier
from unlabeled.methods.ssld.config import SSLDConfig
from unlabeled.methods.ssld.method import (
    divergences,
    js_loss,
    make_student,
    refuse_other_card,
    refuse_small_blocks,
    soft_cross_entropy,
)
from unlabeled.ops.norms import statistics

LOSSES = pytest.mark.parametrize("loss", [js_loss, soft_cross_entropy], ids=lambda loss: loss.__name__)


def logits(seed: int, rows: int = 6, classes: int = 5, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- losses


def test_the_gradient_is_the_closed_form() -> None:
    student, taught = logits(0).requires_grad_(), logits(1)
    js_loss(student, taught).backward()
    q, p = student.detach().softmax(1), taught.softmax(1)
    kl = (q * (q / p).log()).sum(1, keepdim=True)
    expected = ((q - p) + q * ((q / p).log() - kl)) / (2 * len(q))
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-9)
    one_sided = logits(0).requires_grad_()
    soft_cross_entropy(one_sided, taught).backward()
    torch.testing.assert_close(one_sided.grad, (q - p) / len(q))


def test_the_loss_is_symmetric_and_blind_to_shifts_and_names_of_classes() -> None:
    student, taught = logits(0), logits(1)
    loss = js_loss(student, taught)
    torch.testing.assert_close(js_loss(taught, student), loss)
    torch.testing.assert_close(js_loss(student + torch.arange(6.0)[:, None], taught - 3), loss)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(js_loss(student[:, order], taught[:, order]), loss)
    assert float(loss) > 0 and float(js_loss(student, student + 7)) == pytest.approx(0, abs=1e-12)
    both = divergences(student, taught)
    assert (both.teacher_student > 0).all() and not torch.allclose(both.teacher_student, both.student_teacher)


def test_confident_disagreement_costs_the_logarithm_of_eps() -> None:
    student, taught = (torch.tensor([[300.0, 0.0], [0.0, 300.0]], dtype=torch.float64).roll(k, 0) for k in (0, 1))
    assert float(js_loss(student, taught)) == pytest.approx(math.log(1e12), rel=1e-6)
    uniform = torch.zeros(2, 2, dtype=torch.float64)
    both = divergences(uniform, taught)
    assert float(both.teacher_student[0]) == pytest.approx(math.log(2))
    assert both.student_teacher.isfinite().all()


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype: torch.dtype) -> None:
    student, taught = logits(2, 64, 10).float(), logits(3, 64, 10).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student.to(dtype).requires_grad_(), taught.to(dtype))
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(loss(student, taught)), rel=1e-2)
    large = torch.full((4, 10), -60.0, dtype=dtype)
    large[:, 0] = 60
    extreme = large.roll(1, 1).requires_grad_()
    loss(extreme, large).backward()
    assert extreme.grad.isfinite().all()


@LOSSES
def test_no_gradient_reaches_the_teachers_logits(loss) -> None:
    taught = logits(1).requires_grad_()
    loss(logits(0).requires_grad_(), taught).backward()
    assert taught.grad is None


# ---- one view, no labels


def test_both_networks_see_one_view_each_by_its_own_statistics() -> None:
    tiny = tiny_run(tiny_recipe("ssld", "batch"))
    method, batch = tiny.updater.method, tiny.micros(0)[0]
    views = tiny.updater.views(0, 0, batch)
    assert torch.equal(views["view"], views["teacher_view"])
    method.teacher_input = type(method.input)(8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    views = tiny.updater.views(0, 0, batch)
    raw = batch["train"].crops[0].float() / 255
    for name, image in (("view", method.input), ("teacher_view", method.teacher_input)):
        mean, std = (torch.tensor(x)[:, None, None] for x in (image.mean, image.std))
        torch.testing.assert_close(views[name] * std + mean, raw)


def test_autoaugment_changes_the_one_view_alike_for_both() -> None:
    plain, changed = (tiny_run(tiny_recipe("ssld", "running", [f"method.policy={policy}"])) for policy in
                      ("null", "autoaugment"))
    batch = plain.micros(0)[0]
    before, after = (tiny.updater.views(0, 0, batch) for tiny in (plain, changed))
    assert not torch.equal(before["view"], after["view"]) and torch.equal(after["view"], after["teacher_view"])


def test_labels_are_not_read() -> None:
    recipe = tiny_recipe("ssld", "batch")
    plain, other = tiny_run(recipe), tiny_run(recipe)
    source = other.streams["train"].maker.source
    source.labels = np.random.default_rng(0).integers(0, 10, len(source.labels))
    assert plain.micros(0)[0]["train"].label is None
    assert plain.train(0, 3) == other.train(0, 3)


def test_a_folder_without_labels_trains(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0)
    for i in range(64):
        Image.fromarray(noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(images / f"{i}.png")
    recipe = tiny_recipe("ssld", "batch", ["data.train.card=folder", f"data.train.root={images}", "train.updates=2"])
    result = train(recipe, tmp_path / "run")
    assert result.finished and {f.name for f in (tmp_path / "run" / "export").glob("*.safetensors")} == {
        "backbone.safetensors", "classifier.safetensors"}


# ---- the teacher


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_the_teacher_stays_bit_for_bit(mode: str) -> None:
    tiny = tiny_run(tiny_recipe("ssld", "batch", [f"method.teacher_bn={mode}",
                                                  *(["train.blocks=null"] if mode == "running" else [])]))
    network = tiny.updater.method.teacher.network
    before = state_of(network)
    tiny.train(0, 10)
    assert before and all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_what_the_teacher_says_depends_on_the_block_in_batch_mode_alone() -> None:
    for mode, blocks, alike in (("batch", 4, False), ("running", None, True)):
        more = [f"method.teacher_bn={mode}", f"train.blocks={'null' if blocks is None else blocks}"]
        tiny = tiny_run(tiny_recipe("ssld", "batch", more))
        method, view = tiny.updater.method, tiny.updater.views(0, 0, tiny.micros(0)[0])["teacher_view"]
        rows = [block.rows for block in method.info.blocks(64, 0)]
        whole, mixed = method.teacher(view, rows), method.teacher(view.roll(8, 0), rows).roll(-8, 0)
        assert len(rows) == (blocks or 1) and torch.allclose(whole, mixed, atol=1e-5) == alike


def test_statistics_are_those_of_each_block() -> None:
    tiny = tiny_run(tiny_recipe("ssld", "batch"))
    method = tiny.updater.method
    views, _, losses = tiny.losses(0)
    trained = copy.deepcopy(method.teacher.network)
    for norm in trained.modules():
        if statistics(nn.ModuleList([norm])) and not list(norm.children()):
            norm.training, norm.track_running_stats = True, True
    with torch.no_grad():
        taught = torch.cat([trained(part) for part in views["teacher_view"].split(16)])
    expected = js_loss(method.student(views["view"]), taught)
    torch.testing.assert_close(losses.terms["teacher"], expected, rtol=1e-4, atol=1e-6)


def test_a_public_classifier_teaches_by_its_own_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=10).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    source = f"timm:resnet10t@{tmp_path / 'weights.safetensors'}"
    more = [f"method.teacher={source}", "method.crop={kind: padded, size: 32, pad: 12}", "data.train.batch=16"]
    tiny = tiny_run(tiny_recipe("ssld", "running", more))
    method, views = tiny.updater.method, tiny.updater.views(0, 0, tiny.micros(0)[0])
    assert method.student.linear.out_features == 10
    assert method.teacher_input.mean != method.input.mean
    assert not torch.equal(views["view"], views["teacher_view"])
    with torch.no_grad():
        torch.testing.assert_close(method.teacher(views["teacher_view"]), theirs(views["teacher_view"]))
    tiny.train(0, 1)


# ---- the student


class Head(nn.Module):
    """A network that drops by layers, and in front of its classifier by a function as timm's do."""

    num_features = 4
    input = gives = None

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate = 0.4
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.body(x).mean((2, 3)), self.drop_rate, self.training)


def test_the_student_does_not_drop() -> None:
    student = make_student(Head(), 7).train()
    nn.init.normal_(student.linear.weight)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(student(x), student(x)) and student(x).shape == (4, 7)
    mobile = build_backbone(Backbone(name="mobilenetv3_small_050", options={"drop_rate": 0.5}))
    mobile.gives = None
    student = make_student(mobile, 3)
    assert student.network.drop_rate == 0 and student.linear.in_features == 1024


def test_a_second_stage_goes_on_with_the_firsts_classifier(tmp_path: Path) -> None:
    first = tmp_path / "first"
    train(tiny_recipe("ssld", "batch", ["train.updates=3"]), first)
    second = tiny_run(tiny_recipe("ssld", "batch", [f"backbone={{init: '{first}:classifier'}}"]))
    again = tiny_run(tiny_recipe("ssld", "batch", ["train.updates=3"]))
    again.train(0, 3)
    learned, started = again.updater.method.student, second.updater.method.student
    assert isinstance(started, Classifier) and started.linear.weight.abs().sum() > 0
    assert all(torch.equal(value, started.state_dict()[name]) for name, value in learned.state_dict().items())
    fresh = tiny_run(tiny_recipe("ssld", "batch", [f"backbone={{init: '{first}:backbone'}}"]))
    assert not fresh.updater.method.student.linear.weight.any()
    assert torch.equal(fresh.updater.method.student.network.conv1.weight, learned.network.conv1.weight)


def test_the_second_stages_classifier_must_know_as_many_classes() -> None:
    with pytest.raises(UserError, match=r"backbone.init knows 3 classes, the teacher 7; .* RUN:backbone"):
        make_student(Classifier(Head(), 3), 7)


# ---- what is refused


def test_a_teacher_without_logits_or_batchnorm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="gives no logits; name a network that was trained as a classifier"):
        tiny_run(tiny_recipe("ssld", "batch", [f"method.teacher={teacher()}:backbone"]))
    monkeypatch.setattr("unlabeled.methods.ssld.method.tracking_batchnorms", lambda network: [])
    with pytest.raises(UserError, match=r"has no BatchNorm.*method.teacher_bn=running"):
        tiny_run(tiny_recipe("ssld", "batch"))
    tiny_run(tiny_recipe("ssld", "running"))


def test_other_classes_than_the_teachers_are_refused_unless_their_labels_are_left_out(tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (9, 9)).save(tmp_path / "train" / name / f"{i}.png")
    other = ["data.train.card=classfolder", f"data.train.root={tmp_path}"]
    with pytest.raises(UserError, match=r"knows 10 classes, but the data card has 3; .*labels: false"):
        tiny_run(tiny_recipe("ssld", "running", other))
    without = f"{{card: classfolder, root: '{tmp_path}', labels: false}}"
    for sets in (without, f"{{card: digits}}, {without}"):
        mix = f"data.train={{batch: 24, mix: [{sets}]}}"
        tiny_run(tiny_recipe("ssld", "running", [mix])).train(0, 2)


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
def test_the_order_of_classes_must_be_the_teachers(names: tuple[str, ...] | None) -> None:
    card = Info(0, 0, 1, 3, {"train": StreamInfo(9, 3)}, names=names)
    refuse_other_card("runs/x", 3, ["a", "b", "c"], card)
    refuse_other_card("runs/x", 3, None, card)
    refuse_other_card("timm:x", 3, ["tench", "goldfish", "shark"], card)  # other words for them, perhaps
    if names is None:
        refuse_other_card("runs/x", 3, ["a", "c", "b"], card)
        return
    for source, other in (("runs/x", "acb"), ("timm:x", "acb"), ("runs/x", "azy")):
        with pytest.raises(UserError, match=f"calls class 1 '{other[1]}', but the data card 'b'; .*labels: false"):
            refuse_other_card(source, 3, [*other], card)


def test_names_of_classes_come_with_the_teacher_and_the_card() -> None:
    method = tiny_run(tiny_recipe("ssld", "running")).updater.method
    assert method.teacher.network.names == list(method.info.names) == [str(digit) for digit in range(10)]


def info(batch: int, world: int, grad_accum: int, blocks: int) -> Info:
    streams = {"train": StreamInfo(1000, batch)}
    return Info(0, 0, world, 10, streams, grad_accum=grad_accum, block_count=blocks)


def test_blocks_of_few_images_are_refused_with_a_number_that_does() -> None:
    refuse_small_blocks(info(64, 2, 2, 4))
    with pytest.raises(UserError, match=r"8 blocks of 8 images, .*set train.blocks=4, or method.teacher_bn=running"):
        refuse_small_blocks(info(64, 2, 1, 8))
    with pytest.raises(UserError, match=r"set data.train.batch=128 or more, or method.teacher_bn=running"):
        refuse_small_blocks(info(64, 4, 2, 8))
    with pytest.raises(UserError, match=r"data.train.batch is 12, but ssld learns from 16 images or more"):
        tiny_recipe("ssld", "batch", ["data.train.batch=12", "train.blocks=null"])
    assert tiny_recipe("ssld", "running", ["data.train.batch=12"]).data.train.batch == 12


def test_blocks_without_a_use_are_refused() -> None:
    with pytest.raises(UserError, match=r"'train.blocks' has no effect with this ssld"):
        tiny_recipe("ssld", "running", ["train.blocks=2"])
    assert not SSLDConfig(teacher="x", teacher_bn="running").works_by_blocks()
    assert tiny_case("ssld", "batch").read().method.works_by_blocks()
