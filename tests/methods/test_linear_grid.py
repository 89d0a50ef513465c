"""The grid of linear classifiers: forms of the features against timm's own, and training against SGD written out."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny import snapshot, tiny_recipe, tiny_run
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError
from unlabeled.methods.probe.forms import Forms, spread_blocks


def vit(**options) -> nn.Module:
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "num_classes": 0, "depth": 7}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **options}).eval()


def images(size: int = 16) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(5))


def test_four_blocks_are_evenly_spaced_and_each_is_taken_once() -> None:
    assert spread_blocks(24) == [6, 12, 18, 23]
    assert spread_blocks(12) == [3, 6, 9, 11]
    assert spread_blocks(7) == [2, 4, 5, 6]  # 1.75, 3.5 to even, 5.25
    assert [spread_blocks(depth) for depth in (1, 2, 4, 5)] == [[0], [0, 1], [1, 2, 3], [1, 2, 4]]


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}, {"depth": 4, "fc_norm": True}], ids=str)
def test_forms_of_a_transformer_are_the_normed_tokens_of_its_blocks(options) -> None:
    network, x = vit(**options), images()
    with torch.no_grad():
        found = Forms(network, 16)(x)
        places = spread_blocks(len(network.blocks))
        layers = network.get_intermediate_layers(x, n=places, norm=True, return_prefix_tokens=True)
        layers = [(network.fc_norm(patches), network.fc_norm(prefix)[:, 0]) for patches, prefix in layers]
    assert len(layers[0][0][0]) == 16  # neither the class token nor registers are patches
    last, four = layers[-1][1], torch.cat([token for _, token in layers], 1)
    mean = layers[-1][0].mean(1)
    torch.testing.assert_close(last, network(x))
    expected = {"last": last, "last+mean": torch.cat([last, mean], 1)}
    expected |= {"four": four, "four+mean": torch.cat([four, mean], 1)}
    assert list(found) == list(expected)
    for form, features in expected.items():
        torch.testing.assert_close(found[form], features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", [
    vit(global_pool="avg", class_token=False), vit(global_pool="avg"), nn.Sequential(vit(), nn.Linear(8, 5)),
    timm.create_model("resnet10t", num_classes=0).eval(),
], ids=["no class token", "mean of patches", "head", "resnet"])
def test_any_other_network_has_its_vector_alone(network: nn.Module) -> None:
    with torch.no_grad():
        found = Forms(network, 16)(images())
        assert list(found) == ["vector"] and torch.equal(found["vector"], network(images()))


def test_classifiers_begin_small_and_learn_at_their_own_rates() -> None:
    method = tiny_run(tiny_recipe("linear-grid", "tokens", ["method.lr=[0.01, 0.1, 1.0]"])).updater.method
    weights = torch.cat([head.weight.flatten() for heads in method.heads.values() for head in heads])
    assert 0.009 < weights.std() < 0.011 and abs(float(weights.detach().mean())) < 0.001
    assert all(not head.bias.any() for heads in method.heads.values() for head in heads)
    rates = {name: group.lr_mult for group in method.param_groups() for name in group.names}
    assert len(rates) == 2 * 12 == len(list(method.parameters()))
    assert rates["heads.four+mean.1.weight"] == 0.1 and rates["heads.last.2.bias"] == 1.0
    assert method.choices[:4] == [("last", 0.01), ("last", 0.1), ("last", 1.0), ("last+mean", 0.01)]


def test_every_classifier_learns_as_it_would_alone() -> None:
    recipe = tiny_recipe("linear-grid", "tokens", ["optim={name: sgd, lr: {base: 2.0}, momentum: 0.9}"])
    tiny = tiny_run(recipe)
    method = tiny.updater.method
    start, moving = snapshot(tiny), {}
    weights = {name: start[name].clone() for name in start if name.startswith("heads.")}
    for update in range(3):
        views = tiny.updater.views(update, 0, tiny.micros(update)[0])
        features = method.features(views["view"])
        for form, place in ((form, place) for form in features for place in (0, 1)):
            names = [f"heads.{form}.{place}.{part}" for part in ("weight", "bias")]
            own = [weights[name].requires_grad_() for name in names]
            loss = F.cross_entropy(F.linear(features[form], *own), views["label"])
            for name, grad in zip(names, torch.autograd.grad(loss, own), strict=True):
                moving[name] = grad + 0.9 * moving.get(name, 0)
                rate = tiny.updater.plan.lr(update) * (0.1, 0.5)[place]
                weights[name] = (weights[name] - rate * moving[name]).detach()
        tiny.train(update, update + 1)
    after = snapshot(tiny)
    for name, expected in weights.items():
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(after[name], start[name])


def test_verdicts_are_the_answers_of_the_classifiers() -> None:
    tiny = tiny_run(tiny_recipe("linear-grid", "tokens"))
    tiny.train(0, 2)
    method, x = tiny.updater.method, images(8)
    with torch.no_grad():
        verdicts = method.verdicts().build()(x)
        each = [method.classifier(choice).build()(x).argmax(1) for choice in method.choices]
    assert verdicts.shape == (3, 8) and torch.equal(verdicts, torch.stack(each, 1).float())
    assert len({tuple(column) for column in verdicts.T.tolist()}) > 1


def test_the_log_has_the_best_accuracy_of_every_form() -> None:
    tiny = tiny_run(tiny_recipe("linear-grid", "tokens", ["method.lr=[0.01, 100.0]"]))
    tiny.train(0, 3)
    views, _, losses = tiny.losses(3)
    method = tiny.updater.method
    features, differ = method.features(views["view"]), False
    for form, heads in method.heads.items():
        right = [float((head(features[form]).argmax(1) == views["label"]).float().mean()) for head in heads]
        assert float(losses.metrics[f"{form}_accuracy"]) == pytest.approx(max(right))
        differ |= right[0] != right[1]
    assert differ


def test_rates_that_stand_twice_are_refused() -> None:
    with pytest.raises(UserError, match=r"lr lists rising learning rates, each once; got \[0.1, 0.1\]"):
        tiny_recipe("linear-grid", "vector", ["method.lr=[0.1, 0.1]"])


@pytest.mark.parametrize("name", ["elastic_vit_tiny", "elastic_swin_tiny", "elastic_resnet_tiny"])
def test_elastic_networks_have_the_forms_of_their_family(name: str) -> None:
    network = build_backbone(Backbone(name=name)).eval()
    size = getattr(network, "img_size", 32)
    with torch.no_grad():
        x = images(size)
        found = Forms(network, size)(x)
        tokens = network.forward_features(x)
    if name != "elastic_vit_tiny":
        assert list(found) == ["vector"]
        return
    last = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    torch.testing.assert_close(found["last+mean"], last)
    torch.testing.assert_close(found["four+mean"][:, -last.shape[1]:], last)
