"""A method, a backbone, a kind of source, an optimizer and a protocol of a user's own, named as module:object.

One run of all of them goes through the commands; nothing of it stands in this package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unlabeled.cli.main import main
from unlabeled.config.base.objects import load_object
from unlabeled.config.schema import recipe_schema
from unlabeled.errors import UserError

MODULE = '''
import copy
import numpy as np
import torch
from torch import nn
from unlabeled.augment import geometry
from unlabeled.config.augment import Crop, PaddedCrop
from unlabeled.config.protocols.vectors import Protocol
from unlabeled.config.recipe import MethodConfig
from unlabeled.data.batch import Stream
from unlabeled.data.sources.base import Source
from unlabeled.engine.passes.features import Features
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.methods.base import Export, Input, Losses, Method


class Net(nn.Module):
    def __init__(self, width, drop=0.0):
        super().__init__()
        self.num_features = width
        self.stem, self.drop = nn.Conv2d(3, width, 3), nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.stem(x).relu().mean((2, 3)))


def net(width=8, drop=0.0):
    return Net(width, drop)


def broken(width=8):
    raise ValueError("no such width")


def number(*anything):
    return 3


class Stripes(Source):
    """Images of two classes: stripes across or down."""

    def __init__(self, card, split):
        super().__init__(card.name, split)
        self.labels = np.arange(card.source.options["images"]) % 2
        self.classes = ["across", "down"]

    def __len__(self):
        return len(self.labels)

    def key(self, index):
        return f"{self.split}-{index}"

    def image(self, index):
        random = np.random.default_rng([index, self.split == "test"])
        x = np.zeros((8, 8), np.uint8)
        x[random.integers(2) :: 2] = random.integers(100, 255)
        return np.repeat((x if self.labels[index] else x.T)[:, :, None], 3, 2)


def stripes(card, split, root=None):
    return Stripes(card, split)


class Grey(Stripes):
    def image(self, index):
        return super().image(index)[:, :, 0]


class Listed(Stripes):
    def __init__(self, card, split):
        super().__init__(card, split)
        self.labels = self.labels.tolist()


class Nameless(Stripes):
    def __init__(self, card, split):
        super().__init__(card, split)
        self.classes = None


def grey(card, split, root):
    return Grey(card, split)


def listed(card, split, root):
    return Listed(card, split)


def nameless(card, split, root):
    return Nameless(card, split)


constant = 3


class Sign(torch.optim.Optimizer):
    """Steps by the sign of the gradient."""

    def __init__(self, params, lr, scale=1.0):
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * group["scale"] * p.grad.sign()
                self.state[p]["steps"] = self.state[p].get("steps", 0) + 1


class BrightConfig(MethodConfig):
    name: str
    crop: Crop = PaddedCrop(kind="padded", size=8)


class Bright(Method):
    """Predicts the brightness of an image."""

    Config = BrightConfig

    @classmethod
    def streams(cls, cfg):
        return {"train": Stream((geometry.build(cfg.crop),))}

    def __init__(self, cfg, make_backbone, info):
        super().__init__()
        self.cfg, self.backbone = cfg, make_backbone()
        self.head = nn.Linear(self.backbone.num_features, 1)

    def views(self, batch, step):
        return {"view": batch["train"].crops[0].float() / 255}

    def forward(self, views, step):
        guess = self.head(self.backbone(views["view"]))[:, 0]
        return Losses({"error": (guess - views["view"].mean((1, 2, 3))).square().mean()})

    def exports(self):
        return {"backbone": Export(lambda: copy.deepcopy(self.backbone).eval(), "vector", Input(self.cfg.crop.size))}


class CentresSettings(Protocol):
    """Nearest mean of a class."""

    power: float = 2.0


def centres(cfg: CentresSettings, train: Features, test: Features, classes: int, device: torch.device):
    means = torch.stack([train.x[train.label == c].mean(0) for c in range(classes)])
    right = torch.cdist(test.x, means, p=cfg.power).argmin(1) == test.label
    return {"centres": Score(100 * float(right.float().mean()))}


def unsaid(cfg, train, test, classes, device):
    return {}


def bare(cfg: CentresSettings, train, test, classes, device):
    return {"bare": 50.0}


def short(cfg: CentresSettings, train):
    return {}
'''
CARD = """\
name: stripes
source: {kind: "my_toys:stripes", options: {images: 64}}
splits: {train: {samples: 64}, test: {samples: 64}}
mean: [0.5, 0.5, 0.5]
std: [0.5, 0.5, 0.5]
"""
RECIPE = """\
method: {name: "my_toys:Bright"}
backbone: {name: "my_toys:net", options: {width: 6, drop: 0.2}}
data: {workers: 0, train: {card: card.yaml, batch: 16}}
optim:
  name: "my_toys:Sign"
  options: {scale: 0.5}
  lr: {base: 0.01}
train: {updates: 6, checkpoint_every: 3, precision: fp32}
eval: {every: 0, at_end: [protocol.yaml]}
"""
PROTOCOL = 'protocol: "my_toys:centres"\npower: 1.5\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_toys.py").write_text(MODULE)
    (tmp_path / "own" / "my_wreck.py").write_text("raise OSError('no licence')\n")
    (tmp_path / "own" / "my_needy.py").write_text("import a_missing_module\n")
    for name, text in (("card.yaml", CARD), ("recipe.yaml", RECIPE), ("protocol.yaml", PROTOCOL)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    yield tmp_path
    sys.modules.pop("my_toys", None)


def test_a_run_of_ones_own_objects_trains_goes_on_and_is_evaluated(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["pretrain", "recipe.yaml", "--print"]) == 0
    shown = capsys.readouterr().out
    (folder / "shown.yaml").write_text(shown)
    assert "my_toys:net" in shown and "scale: 0.5" in shown and "momentum" not in shown
    assert main(["pretrain", "shown.yaml", "run=whole"]) == 0
    said = capsys.readouterr().out
    assert "centres" in said

    lines = said[said.index("from safetensors.torch"):].split("\n\n")[0]
    assert "from my_toys import net" in lines and "net(width=6, drop=0.2)" in lines and "unlabeled" not in lines
    found: dict = {}
    exec(lines, found)
    weights = load_file("whole/export/backbone.safetensors")
    assert weights.keys() == {"stem.weight", "stem.bias"}
    assert torch.equal(found["model"].stem.weight, weights["stem.weight"])

    assert main(["pretrain", "recipe.yaml", "run=parts"]) == 0  # once more, then as if it had ended after three updates
    for file in Path("parts/checkpoints").glob("*00006*"):
        file.unlink()
    for name in ("DONE", "SAVED"):
        Path("parts", name).unlink(missing_ok=True)
    assert main(["pretrain", "recipe.yaml", "run=parts"]) == 0
    assert "going on from update 3" in capsys.readouterr().out
    again = load_file("parts/export/backbone.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)

    assert main(["evaluate", "protocol.yaml", "whole", "power=3.0"]) == 0
    report = json.loads(next(Path("whole/eval").glob("protocol-power=3.0*.json")).read_text())
    assert report["settings"]["power"] == 3.0 and report["numbers"][0]["name"] == "centres"
    for name, message in (("bare", "'my_toys:bare' must give a dict of unlabeled.evaluation.vectors.scores.Score"),
                          ("short", "'my_toys:short' cannot be called as short(cfg, train, test, classes, device)")):
        (folder / "wrong.yaml").write_text(PROTOCOL.replace("centres", name))
        assert main(["evaluate", "wrong.yaml", "whole"]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", "whole", "--format", "timm", "--out", "x.safetensors"]) == 2
    assert "which is one of the recipe's own" in capsys.readouterr().err


MISTAKES = [
    ("backbone.name=my_tois:net", "override 'backbone.name=my_tois:net': 'my_tois:net' cannot be imported: there is no "
     "module 'my_tois'; install it, or put its folder on PYTHONPATH"),
    ("backbone.name=my_toys:nett", "my_toys has no 'nett'. Did you mean 'net'?"),
    ("backbone.name=my_wreck:net", "'my_wreck:net' cannot be imported: my_wreck raises OSError: no licence"),
    ("backbone.name=my_needy:net", "my_needy needs 'a_missing_module', which is missing; install it"),
    ("backbone.name='my_toys:'", "'my_toys:' is not of the form module:object"),
    ("backbone.name=own/my_toys.py:net", "'own/my_toys.py' is no module; write package.module:object, with dots"),
    ("backbone.name=.my_toys:net", "'.my_toys' is no module"),
    ("backbone.name=my_toys:constant", "'my_toys:constant' must be a function or a class, but is a int"),
    ("optim.name=my_toys:constant", "'my_toys:constant' must be a function or a class"),
    ("method.name=my_toys:constant", "'my_toys:constant' must be a function or a class"),
    ("backbone.name=my_toys:broken", "backbone.options.drop: 'my_toys:broken' has no such option. Known: width"),
    ("backbone={name: my_toys:broken, options: {width: 2}}", "options width do not fit my_toys:broken: no such width"),
    ("backbone={name: my_toys:number}", "'my_toys:number' must give an nn.Module with num_features"),
    ("backbone.options={widht: 3}", "backbone.options.widht: 'my_toys:net' has no such option. Did you mean 'width'?"),
    ("backbone.stem=cifar", "'stem' has no effect with my_toys:net"),
    ("optim.name=my_toys:Sing", "my_toys has no 'Sing'. Did you mean 'Sign'?"),
    ("optim.name=lasr", "'optim.name' is 'lasr'; allowed: lars, sgd, adamw, adamp. Did you mean 'lars'?"),
    ("optim.name=sgd", "'options' has no effect with sgd"),
    ("optim.momentum=0.9", "'momentum' has no effect with my_toys:Sign; it belongs to lars and sgd"),
    ("optim.options={scael: 1}", "optim.options.scael: 'my_toys:Sign' has no such option. Did you mean 'scale'?"),
    ("optim.weight_decay=0.1", "optim.weight_decay has no effect with 'my_toys:Sign'"),
    ("optim={name: my_toys:net, lr: {base: 1}}", "'my_toys:net' does not take parameter groups, lr and optim.options"),
    ("method.name=my_toys:Brite", "my_toys has no 'Brite'. Did you mean 'Bright'?"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_wrong_name_or_option_is_one_line_with_the_cure(
    override: str, message: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["pretrain", "recipe.yaml", "run=r", "--dry-run", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("card.yaml", "stripes\", o", "stripse\", o", "'my_toys:stripse' cannot be imported: my_toys has no 'stripse'. Did "
                                                  "you mean 'stripes'?"),
    ("card.yaml", "my_toys:stripes", "my_toys:number", "source.kind 'my_toys:number' must give a"),
    ("card.yaml", "my_toys:stripes", "my_toys:constant", "source.kind 'my_toys:constant' must be a function or a"),
    ("card.yaml", "my_toys:stripes", "my_toys:net", "'my_toys:net' cannot be called as net(card, split, root): too"),
    ("card.yaml", "my_toys:stripes", "my_toys:grey", "must give images as uint8 [H, W, 3], but gives uint8 [8, 8]"),
    ("card.yaml", "my_toys:stripes", "my_toys:listed", "give labels as int64 [64], one per image, but gives a list"),
    ("card.yaml", "my_toys:stripes", "my_toys:nameless", "must give classes, the names of the labels"),
    ("card.yaml", "my_toys:stripes", "foldre", "card.yaml:2: 'source.kind' is 'foldre'; allowed: shards, stream"),
    ("card.yaml", "options", "optoins", "card.yaml:2: unknown key 'source.optoins'. Did you mean 'options'?"),
    ("protocol.yaml", "centres", "centers", "protocol.yaml:1: 'my_toys:centers' cannot be imported: my_toys has no "
                                            "'centers'. Did you mean 'centres'?"),
    ("protocol.yaml", "centres", "unsaid", "protocol.yaml:1: 'my_toys:unsaid' must be a function whose first argument"),
    ("protocol.yaml", "power", "powre", "protocol.yaml:2: unknown key 'powre'. Did you mean 'power'?"),
    ("protocol.yaml", "\"my_toys:centres\"", "kn", "'protocol' is 'kn'; allowed: knn"),
])  # fmt: skip
def test_a_wrong_card_or_protocol_is_one_line_with_the_cure(
    file: str, old: str, new: str, message: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    assert main(["pretrain", "recipe.yaml", "run=r", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_the_schema_allows_names_of_ones_own() -> None:
    name = recipe_schema()["$defs"]["Optim"]["properties"]["name"]
    for allowed in ({"enum": ["lars", "sgd", "adamw", "adamp"]}, {"type": "string", "pattern": ":"}):
        assert allowed in name["anyOf"]


def test_a_module_that_is_there_and_lacks_another_is_no_missing_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_parts.py").write_text("import lacking\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="lacking_parts needs 'lacking', which is missing"):
        load_object("lacking_parts:net")
