"""What a dry run says of memory: closed forms, and few images against all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from processes import run_processes
from tiny import differing, snapshot, tiny_recipe, tiny_run
from torch import nn

from unlabeled.cli.main import main
from unlabeled.config.recipe import Recipe
from unlabeled.engine import build
from unlabeled.engine.dry_run import (
    VIEWS,
    activation_sizes,
    buffer_sizes,
    estimate,
    extended,
    few_images,
    fixed_sizes,
)
from unlabeled.engine.optim.optimizer import set_learning_rate
from unlabeled.engine.train import train
from unlabeled.engine.updater import Updater
from unlabeled.methods.base import Losses, Method
from unlabeled.ops.machine.activations import Kept, branch

IMAGES, INPUTS, HIDDEN, OUTPUTS = 24, 3 * 8 * 8, 5, 2
WEIGHTS = 4 * (INPUTS * HIDDEN + HIDDEN + HIDDEN * OUTPUTS + OUTPUTS)


class Perceptron(Method):
    """Two layers on pixels, the first of them a branch, with a copy of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.copy = nn.Linear(HIDDEN, OUTPUTS).requires_grad_(False)
        self.register_buffer("bank", torch.zeros(11))

    def views(self, batch, step):
        return {"pixels": batch["train"].crops[0].float().flatten(1) / 255}

    def forward(self, views, step):
        with branch("first"):
            hidden = self.first(views["pixels"]).relu()
        return Losses({"size": self.second(hidden).square().mean()})


def with_perceptron(optimizer: str = "name: sgd, lr: {base: 0.1}") -> tuple[Updater, list]:
    tiny = tiny_run(tiny_recipe("rotnet", "all", [f"optim={{{optimizer}}}"]))
    updater = tiny.updater
    return Updater(Perceptron(), updater.recipe, updater.plan, updater.accelerator), tiny.micros(0)


def test_a_perceptron_takes_what_can_be_counted_by_hand() -> None:
    updater, (batch,) = with_perceptron()
    activations = activation_sizes(updater, batch, "fp32")
    assert activations == {"first": 4 * IMAGES * HIDDEN, "all else": 4 * IMAGES * OUTPUTS, VIEWS: 4 * IMAGES * INPUTS}
    fixed = fixed_sizes(updater.method, updater.optimizer, processes=1)
    copies = 4 * (HIDDEN * OUTPUTS + OUTPUTS)
    assert fixed == (WEIGHTS, copies, 4 * 11, WEIGHTS, 0, WEIGHTS)
    assert fixed_sizes(updater.method, updater.optimizer, processes=2).buckets == WEIGHTS


@pytest.mark.parametrize(("optimizer", "states", "scalars"), [
    ("name: sgd, momentum: 0.9, lr: {base: 0.1}", 1, 0),
    ("name: lars, momentum: 0.9, lr: {base: 0.1}", 1, 0),
    ("name: adamw, lr: {base: 0.1}, weight_decay: 0.1", 2, 4),  # each tensor's number of steps
    ("name: adamp, lr: {base: 0.1}, weight_decay: 0.1", 2, 0),
], ids=["sgd", "lars", "adamw", "adamp"])  # fmt: skip
def test_the_optimizer_is_asked_and_left_as_it_was(optimizer: str, states: int, scalars: int) -> None:
    updater, micros = with_perceptron(optimizer)
    set_learning_rate(updater.optimizer, 0.1, 0.0)
    before = {name: x.clone() for name, x in updater.method.state_dict().items()}
    assert fixed_sizes(updater.method, updater.optimizer, 1).optimizer == states * WEIGHTS + 4 * scalars
    assert not differing(before, updater.method.state_dict())
    assert not updater.optimizer.state and all(p.grad is None for p in updater.method.parameters())
    updater.update(0, micros, [])
    assert differing(before, updater.method.state_dict())


def test_a_frozen_network_counts_though_it_is_no_part() -> None:
    updater = tiny_run(tiny_recipe("distil", "plain")).updater
    teacher = updater.method.teacher.network
    assert fixed_sizes(updater.method, updater.optimizer, 1).frozen_weights == sum(
        4 * p.numel() for p in teacher.parameters()
    )


def test_a_line_through_two_numbers_of_images() -> None:
    few, more = {"a": 10, "b": 100, "c": 0}, {"a": 14, "b": 100, "c": 0}
    assert extended([2, 4], [few, more], 50) == {"a": 106, "b": 100, "c": 0}  # b does not grow
    assert extended([7], [few], 7) == few


@pytest.mark.parametrize(("method", "variant"), [
    ("rotnet", "all"),
    ("pixpro", "fpn"),
    ("simmatchv2", "randaugment"),  # two streams, 2 to 1
    ("distil", "plain"),
])  # fmt: skip
def test_few_images_say_what_all_of_them_keep(method: str, variant: str) -> None:
    recipe = tiny_recipe(method, variant)
    tiny, opened = tiny_run(recipe), build.open_data(recipe)
    info, before = build.make_info(recipe, opened), snapshot(tiny)
    lines = estimate(tiny.updater, opened, info)
    assert not differing(before, snapshot(tiny))  # statistics of BatchNorm among them
    few = few_images(recipe, info)
    assert lines[0] == f"memory per GPU for 24 images of 24 in fp32 (estimate, from {few} and {2 * few} images)"
    sizes = activation_sizes(tiny.updater, tiny.micros(0)[0], "fp32")
    said = re.search(r"activations ([\d.]+) MiB.*; views ([\d.]+) MiB", lines[2])
    assert float(said[2]) == pytest.approx(sizes.pop(VIEWS) / 2**20, abs=0.006)
    assert float(said[1]) == pytest.approx(sum(sizes.values()) / 2**20, abs=0.006, rel=0.01)


def test_the_largest_sub_network_counts_whenever_the_run_ends() -> None:
    sizes = []
    for updates in (8, 9):
        tiny = tiny_run(tiny_recipe("poa", "sinkhorn", [f"train.updates={updates}", "method.patches=null",
                                                        "backbone.options.drop_path_rate=0"]))
        sizes.append(activation_sizes(tiny.updater, tiny.micros(0)[0], "fp32"))
    assert sizes[0] == sizes[1] and 0.5 < sizes[0]["elastic student"] / sizes[0]["intact student"] < 1


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) MiB", text)]


def test_views_of_all_micro_batches_are_there_and_the_activations_of_one() -> None:
    """In all it is the sum of what is listed."""
    recipe = tiny_recipe("pixpro", "plain", ["train.grad_accum=2"])
    tiny, opened = tiny_run(recipe), build.open_data(recipe)
    lines = estimate(tiny.updater, opened, build.make_info(recipe, opened))
    assert lines[0].startswith("memory per GPU for 12 images of 24 in ")
    sizes = activation_sizes(tiny.updater, tiny.micros(0)[0], "fp32")
    views = 2 * sizes.pop(VIEWS)
    activations, *_, said_views = numbers(lines[2])
    assert said_views == pytest.approx(views / 2**20, abs=0.006)
    assert activations == pytest.approx(sum(sizes.values()) / 2**20, abs=0.006, rel=0.01)
    (together,) = numbers(lines[3].partition(",")[0])
    assert together == pytest.approx(sum(numbers(lines[1])) + activations + said_views, abs=0.04)


def test_an_update_of_several_micro_batches_is_rehearsed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("unlabeled.engine.launch._has_amx", lambda: False)  # by which a CPU has bf16 too
    recipe = tiny_recipe("pixpro", "plain", ["train.grad_accum=2", "train.precision=auto"])
    train(recipe, tmp_path / "run", dry_run=True, images=2)
    out = capsys.readouterr().out
    assert "memory per GPU for 12 images of 24 in bf16 " in out  # which a GPU would have
    assert "dry run: updates of 4 images, " in out
    losses = []
    for images in (None, 100):  # which are more than there are
        train(recipe, tmp_path / "run", dry_run=True, images=images)
        losses.append(re.search(r"dry run: loss ([\d.-]+), ", capsys.readouterr().out)[1])
    assert losses[0] == losses[1]


def test_the_last_update_is_measured() -> None:
    tiny = tiny_run(tiny_recipe("poa", "later"))  # no patch is hidden at first
    (batch,) = tiny.micros(0)
    views = tiny.updater.views(tiny.updater.plan.total - 1, 0, batch)
    assert "mask0" in views and "mask0" not in tiny.updater.views(0, 0, batch)
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in views.values()}
    assert activation_sizes(tiny.updater, batch, "fp32")[VIEWS] == sum(held.values())
    assert len(held) < len(views)  # both masks are of one draw


def test_the_largest_buffers_are_named_in_mib() -> None:
    network = nn.Module()
    for name, size in (("a", 2**18), ("b", 2**19), ("c", 1), ("d", 2**17)):
        network.register_buffer(name, torch.zeros(size))
    assert buffer_sizes(network, largest=2) == "buffers 3.50 MiB (b 2.00, a 1.00)"


@pytest.mark.parametrize(("method", "variant", "more", "images"), [
    ("rotnet", "all", [], 2),
    ("simclrv2", "colour", [], 2),
    ("ssld", "batch", ["data.train.batch=128", "train.blocks=4"], 64),  # blocks of 16
    ("simmatchv2", "randaugment", ["data.labeled.batch=8"], 3),
])  # fmt: skip
def test_the_fewest_images_keep_streams_in_proportion_and_blocks_filled(
    method: str, variant: str, more: list[str], images: int
) -> None:
    recipe = tiny_recipe(method, variant, more)
    assert few_images(recipe, build.make_info(recipe, build.open_data(recipe))) == images


def test_blocks_are_equally_large_whatever_is_wanted() -> None:
    recipe = tiny_recipe("ssld", "batch", ["data.train.batch=128", "train.blocks=4"])
    assert few_images(recipe, build.make_info(recipe, build.open_data(recipe)), 65) == 68


def test_training_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(Kept, "pack", refuse)
    tiny = tiny_run(tiny_recipe("pixpro", "plain"))
    assert len(tiny.train(0, 1)) == 1
    with pytest.raises(AssertionError, match="measured"):
        activation_sizes(tiny.updater, tiny.micros(0)[0], "fp32")


def test_a_process_stands_for_one_of_many(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    more = ["data.train.batch=128", "train.blocks=4", "train.processes=4"]
    train(tiny_recipe("ssld", "batch", more), tmp_path / "run", dry_run=True, images=2)
    out = capsys.readouterr().out
    assert "128 images each, 32 per process" in out and "4 blocks of 32 images" in out
    assert "memory per GPU for 32 images of 128" in out and "dry run: updates of 16 images, loss" in out
    gradients, buckets = re.search(r"gradients (\S+) MiB, buckets (\S+) MiB", out).groups()
    assert gradients == buckets  # in which they travel between the four
    assert 0.1 < float(re.search(r"peak memory per process (\S+) GiB \(resident\)", out)[1]) < 100
    assert not (tmp_path / "run").exists()


def said_by(rank: int, recipe: Recipe) -> list[str]:
    tiny, opened = tiny_run(recipe), build.open_data(recipe)
    return estimate(tiny.updater, opened, build.make_info(recipe, opened))


def test_processes_hold_their_gradients_twice() -> None:
    lines = run_processes(2, said_by, tiny_recipe("simclrv2", "colour"))
    assert lines[0] == lines[1] and lines[0][0].startswith("memory per GPU for 12 images of 24 in fp32")
    gradients, buckets = re.search(r"gradients ([\d.]+) MiB, buckets ([\d.]+) MiB", lines[0][1]).groups()
    assert gradients == buckets and float(gradients) > 0
    alone = said_by(0, tiny_recipe("simclrv2", "colour", ["data.train.batch=12"]))  # as many images in one process
    views = [re.search(r"views (\S+) MiB", said[2])[1] for said in (lines[0], alone)]
    assert views[0] == views[1]


def test_the_command_says_it_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["pretrain", "demo/pixpro", "train.processes=2", "data.workers=0", "--dry-run", "--images", "2", "run=here"]
    assert main(few) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"memory per GPU for 4 images of 8 in fp32 \(estimate, from 4 images\)\n"
        r"  trained weights \S+ MiB, frozen weights \S+ MiB, buffers \S+ MiB, gradients \S+ MiB, buckets \S+ MiB, "
        r"optimizer \S+ MiB\n"
        r"  activations \S+ MiB: online network \S+ MiB, key network 0, all else \S+ MiB; views \S+ MiB\n"
        r"  together \S+ MiB, besides .*\n"
        r"dry run: updates of 2 images, loss ",
        out,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [["--images", "2"], ["--dry-run", "--images", "0"]])
def test_images_belong_to_a_dry_run(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "demo/pixpro", *given]) == 2
    assert "with --dry-run" in capsys.readouterr().err
