"""Exports load elsewhere, by the very lines that are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.engine.exports.networks import write_exports
from unlabeled.engine.method import build_method
from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, StreamInfo

from tiny import tiny_recipe  # isort: skip


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "resnet18", "width": 0.25, "stem": "cifar"},
        {"name": "resnet18", "stem": "cifar"},
        {"name": "resnet34", "width": 0.125},
        {"name": "resnet18"},
        {"name": "resnet50", "width": 0.125},
        {"name": "mobilenetv3_small_050"},
    ],
    ids=lambda b: "-".join(str(v) for v in b.values()),
)
def test_the_printed_lines_load_the_backbone_into_timm(backbone: dict, tmp_path: Path) -> None:
    recipe = tiny_recipe("simclrv2", "plain").model_copy(update={"backbone": Backbone(**backbone)})
    info = Info(0, 0, 1, None, {"train": StreamInfo(8, 8)})
    method = build_method(recipe, info)
    lines = write_exports(RunFolder(tmp_path), recipe, method, 7)
    found: dict = {}
    exec(lines, found)
    x = torch.rand(2, 3, 32, 32)
    expected = method.exports()["backbone"].build()(x)
    assert expected.shape == (2, method.backbone.num_features)
    assert torch.equal(found["model"].eval()(x), expected)
    assert {p.name for p in (tmp_path / "export").iterdir()} == {
        f"{name}.{suffix}" for name in ("backbone", "backbone+head1") for suffix in ("json", "safetensors")
    }


def test_width_multiplies_every_channel_count() -> None:
    narrow, wide = (build_backbone(Backbone(name="resnet18", width=w, stem="cifar")) for w in (0.5, 1))
    for a, b in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert [2 * n for n in a.shape if n > 3] == [n for n in b.shape if n > 3]


def test_names_and_widths_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean"):
        build_backbone(Backbone(name="resnet19"))
    with pytest.raises(UserError, match="stem channels"):
        build_backbone(Backbone(name="resnet18", width=0.3))
