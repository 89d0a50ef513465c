"""The smallest batch that a method learns from: said by its options, without torch, and refused in one line."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from unlabeled.config.batches import small_batches
from unlabeled.config.read import read_recipe
from unlabeled.engine.plan import make_plan
from unlabeled.errors import UserError
from unlabeled.methods.simclrv2 import Head, ProjectionHead, normalize, nt_xent

INFONCE = "method.instance={kind: infonce}"


@pytest.mark.parametrize(("name", "overrides", "message"), [
    ("demo/simclrv2", [], "simclrv2 learns from 2 images or more: an image is told from the others"),
    ("demo/simclrv2", ["method.memory={size: 120}"], "simclrv2 learns from 2 images or more: BatchNorm"),
    ("demo/pixpro", [INFONCE], "pixpro learns from 2 images or more: method.instance infonce"),
    ("cifar10/rotnet-cpu", ["method={name: probe, heads: {a: {kind: mlp}}}"], "BatchNorm of head 'a'"),
    ("cifar10/rotnet-cpu", ["method={name: probe, heads: {a: {}, b: {norm: true}}}"], "BatchNorm of head 'b'"),
])  # fmt: skip
def test_one_image_is_refused_where_nothing_can_be_learned(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(name, ["data.train.batch=1", *overrides])
    line = str(caught.value)
    assert "\n" not in line and "override 'data.train.batch=1': data.train.batch is 1, but" in line
    read_recipe(name, ["data.train.batch=2", *overrides])


@pytest.mark.parametrize(("name", "overrides"), [
    ("demo/pixpro", []),
    ("demo/pixpro", ["method.pixel={kind: contrast}"]),
    ("demo/pixpro", ["method.instance={kind: byol}"]),
    ("cifar10/rotnet-cpu", []),
    ("cifar10/rotnet-cpu", ["method={name: finetune}"]),
    ("cifar10/rotnet-cpu", ["method={name: distil, teacher: runs/x}"]),
    ("cifar10/rotnet-cpu", ["method={name: probe, heads: {a: {}, b: {block: layer1, pool: 2, norm: true}}}"]),
])  # fmt: skip
def test_one_image_is_enough_for_the_others(name: str, overrides: list[str]) -> None:
    read_recipe(name, ["data.train.batch=1", *overrides])


def test_the_streams_of_simmatchv2_need_one_image_each() -> None:
    read_recipe("demo/simmatchv2", ["data.labeled.batch=1", "data.unlabeled.batch=1"])


def test_without_synchronised_norms_every_process_needs_that_many() -> None:
    recipe = read_recipe("demo/simclrv2", ["data.train.batch=4", "train.sync_bn=false"])
    assert make_plan(recipe, "train", 100, 2).batch_per_process == 2
    with pytest.raises(UserError, match=r"is 4, 1 per process, but simclrv2 learns from 8 images or more without"):
        make_plan(recipe, "train", 100, 4)
    assert make_plan(read_recipe("demo/simclrv2", ["data.train.batch=4"]), "train", 100, 4).batch_per_process == 1
    infonce = read_recipe("demo/pixpro", ["data.train.batch=4", "train.sync_bn=false", INFONCE])
    assert not small_batches(infonce.method, infonce.data, 4, sync_bn=False), "its norms see maps"


def test_a_plan_refuses_what_no_file_was_read_for() -> None:
    recipe = read_recipe("demo/simclrv2")
    small = recipe.data.model_copy(update={"train": recipe.data.train.model_copy(update={"batch": 1})})
    with pytest.raises(UserError, match=r"data.train.batch is 1, but simclrv2 learns from 2"):
        make_plan(recipe.model_copy(update={"data": small}), "train", 100, 1)


def test_what_is_refused_cannot_learn() -> None:
    """The contrast of one image is zero whatever the vectors; alone, its two views are opposite behind BatchNorm."""
    a, b = torch.randn(2, 1, 8, requires_grad=True).unbind()
    loss = nt_xent(normalize(a), normalize(b), 0.1).loss
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, a)[0].any()
    torch.manual_seed(0)
    view1, view2 = normalize(ProjectionHead(8, Head(init_std=1.0))(torch.randn(2, 8)))
    assert float(view1.detach() @ view2.detach()) == pytest.approx(-1, abs=1e-3)
    two = nt_xent(normalize(torch.randn(2, 8)), normalize(torch.randn(2, 8)), 0.1).loss
    assert math.isfinite(float(two)) and float(two) > 0


def test_the_answer_comes_without_torch() -> None:
    code = ("import sys\nfrom unlabeled.cli.main import main\n"
            "code = main(['pretrain', 'demo/simclrv2', 'data.train.batch=1'])\n"
            "sys.exit(9 if 'torch' in sys.modules else code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": "ssl"})
    assert done.returncode == 2 and "data.train.batch is 1, but simclrv2" in done.stderr, done.stderr
