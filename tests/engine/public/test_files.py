"""Files of weights: containers, prefixes, what does not fit, damage, and pickles that are more than tensors."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from public import CLASSES, network, write
from safetensors.torch import save_file

from unlabeled.config.sources import public
from unlabeled.engine.method import load_export, load_teacher
from unlabeled.engine.public.files import read_weights
from unlabeled.engine.public.match import match
from unlabeled.errors import UserError

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def logits(source: str) -> torch.Tensor:
    export = load_teacher(source)
    assert export.gives == "logits"
    with torch.no_grad():
        return export.build()(X)


def below(made: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in made.state_dict().items()}


def as_they_are(made, other):
    return made.state_dict()


def from_ddp(made, other):
    return {"epoch": 3, "state_dict": below(made, "module."), "optimizer": {"state": {0: {"moment": torch.ones(3)}}}}


def from_dino(made, other):
    heads = {"head.mlp.0.weight": torch.ones(3, 3)}
    return {"student": below(other, "module.backbone.") | heads, "teacher": below(made, "backbone.") | heads}


def from_moco(made, other):
    return {"state_dict": below(made, "module.encoder_q.") | below(other, "module.encoder_k.")
            | {"module.queue": torch.ones(4, 9)}}


def averaged(made, other):
    return {"model": other.state_dict(), "model_ema": made.state_dict()}


def compiled(made, other):
    return {"model": below(made, "_orig_mod.encoder.")}


def without_counters(made, other):
    return {name: value for name, value in made.state_dict().items() if "num_batches" not in name}


@pytest.mark.parametrize("form", [as_they_are, from_ddp, from_dino, from_moco, averaged, compiled, without_counters])
def test_a_network_is_found_below_whatever_prefix_it_stands(form, tmp_path: Path) -> None:
    made, other = network(), network(seed=1)
    torch.save(form(made, other), tmp_path / "w.pth")
    with torch.no_grad():
        assert torch.equal(logits(f"timm:test_resnet@{tmp_path}/w.pth"), made(X))


def test_safetensors_are_told_by_their_content(tmp_path: Path) -> None:
    made = network()
    write(tmp_path / "w.safetensors", made, "module.").rename(tmp_path / "w.bin")
    with torch.no_grad():
        assert torch.equal(logits(f"timm:test_resnet@{tmp_path}/w.bin"), made(X))


def test_two_networks_between_which_nothing_decides_are_refused(tmp_path: Path) -> None:
    torch.save(below(network(), "left.") | below(network(seed=1), "right."), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds this network 2 times, below 'left\.' and 'right\.'"):
        load_export(f"timm:test_resnet@{tmp_path}/w.pth")


def test_what_does_not_fit_is_counted_and_the_first_ones_are_named(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["conv1.0.weight"]
    state["surplus.a"] = state["surplus.b"] = torch.ones(2)
    state["layer1.0.conv1.weight"] = torch.ones(3, 3)
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as said:
        load_export(f"timm:test_resnet@{tmp_path}/w.safetensors")
    text = str(said.value)
    assert "1 missing (conv1.0.weight); 2 unknown (surplus.a, surplus.b); 1 of other shape" in text
    assert "layer1.0.conv1.weight [3, 3] in the file" in text and "\n" not in text


def test_only_three_names_of_a_kind_are_shown() -> None:
    wanted = {f"layer{i}": torch.ones(1) for i in range(9)} | {"first": torch.ones(1)}
    found = match({"first": torch.ones(1)}, wanted, (), "it")
    assert found.problems() == "9 missing (layer0, layer1, layer2, ...)" and not found.fits


@pytest.mark.parametrize("other", ["test_vit", "test_byobnet"])
def test_a_file_of_another_network_is_refused_with_the_name_that_it_states(other: str, tmp_path: Path) -> None:
    file, state = tmp_path / "w.safetensors", network(other).state_dict()
    save_file(state, file)
    with pytest.raises(UserError, match=r"none of the \d+ tensors|is it of another network\? Tensors that do not fit"):
        load_export(f"timm:test_resnet@{file}")
    save_file(state, file, metadata={"config": json.dumps({"architecture": other})})
    with pytest.raises(UserError, match=f"the file says that it is of '{other}'; give timm:{other}@FILE"):
        load_export(f"timm:test_resnet@{file}")


def test_a_classifier_that_does_not_fit_is_dropped_for_features_and_refused_for_a_teacher(tmp_path: Path) -> None:
    made = network()
    state = dict(made.state_dict())
    state["fc.weight"] = torch.ones(CLASSES, 7)
    torch.save(state, tmp_path / "w.pth")
    source = f"timm:test_resnet@{tmp_path}/w.pth"
    with torch.no_grad():
        given = load_export(source).build()(X)
        assert torch.equal(given, made.forward_head(made.forward_features(X), pre_logits=True))
    with pytest.raises(UserError, match=r"classifier of the file does not fit .*fc\.weight \[10, 7\] in the file"):
        load_teacher(source)
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "w.pth")
    assert load_teacher(source).gives == "vector"


class Anything:
    """A class that no reader of tensors builds."""


@pytest.mark.parametrize("content", ["nested", "module"])
def test_a_pickle_of_more_than_tensors_is_refused_with_a_line_that_converts_it(content: str, tmp_path: Path) -> None:
    made = network()
    file = tmp_path / "w w.pth"
    torch.save({"model": made.state_dict(), "args": argparse.Namespace(lr=1)} if content == "nested" else made, file)
    with pytest.raises(UserError, match="besides tensors") as said:
        read_weights(file)
    first, line = str(said.value).split("\n")
    assert str(file) in first and ("Namespace" if content == "nested" else "timm") in first
    command = shlex.split(line)
    subprocess.run([sys.executable, *command[1:]], check=True)
    with torch.no_grad():
        assert torch.equal(logits(f"timm:test_resnet@{file.with_suffix('.safetensors')}"), made(X))
    file.with_suffix(".safetensors").write_bytes(b"of something else")
    with pytest.raises(UserError, match=r"convert it \(.*w w\.safetensors is there already: name that"):
        read_weights(file)
    assert subprocess.run([sys.executable, *command[1:]], capture_output=True).returncode != 0
    assert file.with_suffix(".safetensors").read_bytes() == b"of something else"


@pytest.mark.parametrize("kind", ["cut", "junk", "empty", "cut safetensors", "no tensors", "missing", "folder"])
def test_damaged_files_are_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / ("w.safetensors" if "safe" in kind else "w.pth")
    if kind.startswith("cut"):
        content = write(file, network()).read_bytes()
        file.write_bytes(content[: len(content) // 2])
    elif kind == "folder":
        file.mkdir()
    elif kind == "no tensors":
        torch.save({"epoch": 3}, file)
    elif kind != "missing":
        file.write_bytes(b"hello " * 100 if kind == "junk" else b"")
    wanted = {"missing": "cannot be read: No such file", "folder": "cannot be read: Is a directory",
              "no tensors": "holds no tensors"}.get(kind, "is damaged, or n")
    with pytest.raises(UserError, match=wanted) as said:
        load_export(f"timm:test_resnet@{file}")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_input_and_classes_are_those_that_the_file_states(where: str, tmp_path: Path) -> None:
    made, names = network(classes=3), ["ant", "bee", "cat"]
    config = {"architecture": "test_resnet", "num_classes": 3, "label_names": names,
              "pretrained_cfg": {"input_size": [3, 48, 48], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    metadata = {"config": json.dumps(config)} if where == "metadata" else None
    save_file(made.state_dict(), tmp_path / "model.safetensors", metadata=metadata)
    if where == "beside":
        (tmp_path / "config.json").write_text(json.dumps(config))
    source = f"timm:test_resnet@{tmp_path}/model.safetensors"
    image = load_export(source).input
    assert (image.size, image.mean, image.std) == (48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load_teacher(source).names == names and load_export(source).names is None
    assert load_export("timm:test_resnet@" + str(write(tmp_path / "w.pth", made))).input.mean is not None


def test_names_are_parted() -> None:
    named = public("timm:resnet18.a1_in1k@a/b@c.pth")
    assert named is not None and (named.name, named.architecture) == ("resnet18.a1_in1k", "resnet18")
    assert named.file == Path("a/b@c.pth") and str(named) == "timm:resnet18.a1_in1k@a/b@c.pth"
    assert public("runs/timm:backbone") is None and public("./timm:resnet18") is None and public("timm") is None
    assert [public(f"torchvision:{name}").backbone for name in ("resnet50", "swin_t")] == [
        "resnet50", "torchvision:swin_t"]
