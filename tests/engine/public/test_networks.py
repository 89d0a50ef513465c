"""Networks of other libraries: what they compute, their maps, names, published weights, classifiers in two parts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from public import network, write
from torch import nn

from unlabeled.backbones.build import build_backbone, loading_lines
from unlabeled.backbones.maps import maps
from unlabeled.backbones.torchvision_networks import build_torchvision
from unlabeled.config.recipe import Backbone
from unlabeled.engine.exports.split import split_classifier
from unlabeled.engine.method import load_export, load_teacher
from unlabeled.engine.public import libraries
from unlabeled.errors import UserError

from tiny import teacher  # isort: skip

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet18", "densenet121"])
def test_torchvisions_networks_compute_what_they_compute_there(name: str, tmp_path: Path) -> None:
    made = torchvision.models.get_model(name, weights=None, num_classes=4).eval()
    source = f"torchvision:{name}@{write(tmp_path / 'w.pth', made)}"
    classifier, features = load_teacher(source), load_export(source)
    assert (classifier.gives, features.gives, features.input.size) == ("logits", "vector", 224)
    backbone = copy.deepcopy(features.build())
    with torch.no_grad():
        assert torch.allclose(classifier.build()(X), made(X), atol=1e-6)
        vectors, cells = backbone(X), maps(backbone, X)[-1]
        last = [module for module in made.modules() if isinstance(module, nn.Linear)][-1]
        assert vectors.shape == (2, backbone.num_features) and cells.shape[2:] == (2, 2)
        assert torch.allclose(last(vectors), made(X), atol=1e-6)
    if name == "mobilenet_v3_small":  # its backbone is one of a recipe too, and its lines need none of this package
        cfg = Backbone(name=f"torchvision:{name}")
        write(tmp_path / "b.safetensors", backbone)
        lines, found = loading_lines(cfg, str(tmp_path / "b.safetensors")), {}
        exec(lines, found)
        with torch.no_grad():
            assert "unlabeled" not in lines and torch.equal(found["model"].eval()(X), vectors)
        assert build_backbone(cfg).state_dict().keys() == backbone.state_dict().keys()


def test_a_map_belongs_to_the_copy_that_gives_it() -> None:
    first = build_torchvision("shufflenet_v2_x0_5", {}).eval()
    second = copy.deepcopy(first)
    nn.init.zeros_(first.conv1[0].weight)
    with torch.no_grad():
        assert not torch.equal(maps(first, X)[-1], maps(second, X)[-1])


def test_a_transformer_takes_other_images_with_the_places_of_its_file(tmp_path: Path) -> None:
    made = network("test_vit")
    source = f"timm:test_vit@{write(tmp_path / 'w.safetensors', made)}"
    usual, larger = load_export(source), load_export(source, options={"img_size": 224})
    assert (usual.input.size, larger.input.size) == (160, 224)
    weights = larger.build().state_dict()
    assert weights["pos_embed"].shape[1] == 14**2 + 1 and torch.equal(weights["blocks.0.attn.qkv.weight"],
                                                                       made.state_dict()["blocks.0.attn.qkv.weight"])
    assert larger.build()(torch.rand(1, 3, 224, 224)).shape == usual.build()(torch.rand(1, 3, 160, 160)).shape


@pytest.mark.parametrize(("source", "said"), [
    ("timm:test_resnett", "timm has no network 'test_resnett'. Did you mean 'test_resnet'"),
    ("timm:resnet18.a1_in1", "timm has no weights 'resnet18.a1_in1'. Did you mean 'resnet18.a1_in1k'"),
    ("torchvision:resnet51", "torchvision has no classification network 'resnet51'. Did you mean"),
    ("torchvision:fcn_resnet50", "torchvision has no classification network 'fcn_resnet50'"),
    ("torchvision:googlenet", "has classifiers at inner places too"),
    ("timm:", "'timm:' names no network"),
])  # fmt: skip
def test_unknown_networks_are_refused_with_the_nearest_name(source: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_export(source)
    assert said in str(error.value)


def test_published_weights_out_of_reach_are_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    for source in ("timm:test_resnet", "torchvision:resnet18"):
        with pytest.raises(UserError, match=r"could not be fetched \(no route\); .* name a file of them") as error:
            libraries.library_of(load_named(source), {}).published()
        assert str(error.value).endswith(f"{source}@FILE")
    with pytest.raises(UserError, match="timm publishes no weights of resnet14t"):
        unpublished = libraries.library_of(load_named("timm:resnet14t"), {})
        unpublished.config = {}
        unpublished.published()


def load_named(source: str):
    from unlabeled.config.sources import public

    return public(source)


# ---- a classifier in two parts


class Wrapped(nn.Module):
    """A network as users wrap theirs: [b, 3, S, S] -> logits."""

    def __init__(self, inner: nn.Module, *after: nn.Module) -> None:
        super().__init__()
        self.inner, self.after = inner, nn.Sequential(*after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.inner(x))


def ours() -> nn.Module:
    return load_teacher(str(teacher())).build()


@pytest.mark.parametrize("make", [
    network, lambda: network("test_byobnet"), lambda: build_torchvision("shufflenet_v2_x0_5", {}, 5),
    torchvision.models.densenet121, torchvision.models.resnet18, ours,
    lambda: Wrapped(timm.create_model("test_resnet", num_classes=0), nn.Linear(96, 3)),
], ids=range(7))  # fmt: skip
def test_the_mean_of_what_is_said_of_cells_is_what_is_said_of_the_image(make) -> None:
    made = make().train()
    features, linear = split_classifier(made)
    assert all(module.training for module in made.modules()), "modes stay as they were"
    made.eval()
    with torch.no_grad():
        cells = features(X)
        assert cells.ndim == 4 and cells.shape[1] == linear.in_features and cells.shape[2] > 1
        of_cells, expected = linear(cells.movedim(1, -1)).mean((1, 2)), made(X)
    assert torch.allclose(of_cells, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: network("test_vit"), "it gives tokens and no map of places"),
    (lambda: network(global_pool="max"), "pools its map by 'max' and not by the mean"),
    (lambda: network("test_convnext"), "more than the mean over places"),
    (lambda: build_torchvision("mobilenet_v3_small", {}, 3), "further layers stand between its map and its classifier"),
    (lambda: build_torchvision("alexnet", {}, 3), "it has no feature map"),
    (lambda: Wrapped(network(), nn.Softmax(1)), "its logits are not what one linear layer gives"),
    (lambda: network(classes=0), "its logits are not what one linear layer gives"),
    (lambda: Wrapped(timm.create_model("test_resnet", num_classes=0), nn.ReLU(), nn.LayerNorm(96), nn.Linear(96, 3)),
     "more than the mean over places"),
], ids=range(8))  # fmt: skip
def test_other_forms_of_classifiers_are_refused_with_the_reason(make, reason: str) -> None:
    with pytest.raises(UserError, match="the teacher cannot tell of places") as error:
        split_classifier(make(), name="the teacher")
    assert reason in str(error.value)
