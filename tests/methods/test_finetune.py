"""Fine-tuning's regularisers: layer-wise rates, and images and labels that are changed together."""

from __future__ import annotations

import pytest
import timm
import torch
from tiny import snapshot, tiny_recipe, tiny_run
from torch import nn

from unlabeled.augment import regularise
from unlabeled.backbones.depth import layer_depths, stages
from unlabeled.errors import UserError
from unlabeled.ops.distributed import Share
from unlabeled.ops.labels import known, known_cross_entropy, known_soft_cross_entropy, likeliest, one_hot

MIXED = ["method={name: finetune, crop: {kind: padded, size: 8}, mixup: 0.8, cutmix: 1.0, smoothing: 0.1}"]


def test_layers_of_a_transformer_are_counted_from_the_classifier() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=3, img_size=32)
    depths = layer_depths(network)
    assert set(depths) == {name for name, _ in network.named_parameters()}
    assert [depths[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)] == [3, 2, 1]
    assert depths["norm.weight"] == 1 and depths["patch_embed.proj.weight"] == depths["cls_token"] == 4
    inside = layer_depths(nn.ModuleDict({"backbone": network, "head": nn.Linear(2, 2)}))
    assert inside["backbone.blocks.2.norm1.weight"] == 1 and "head.weight" not in inside
    with pytest.raises(UserError, match="layer_decay needs a network of timm"):
        layer_depths(nn.Linear(2, 2))


def test_rates_fall_layer_by_layer() -> None:
    recipe = tiny_recipe("finetune", "plain", ["method.layer_decay=0.5"])
    groups = tiny_run(recipe).updater.method.param_groups()
    rate = {name: group.lr_mult for group in groups for name in group.names}
    assert rate["classifier.linear.weight"] == 1
    assert rate["classifier.network.layer4.1.conv1.weight"] == 0.5
    assert rate["classifier.network.layer1.0.conv1.weight"] == 0.5**8
    assert rate["classifier.network.conv1.weight"] == 0.5**9


FIVE = (0.1, 0.1, 0.2, 0.2, 0.3)


def test_rates_go_by_the_stages_of_a_resnet() -> None:
    groups = tiny_run(tiny_recipe("finetune", "plain", [f"method.stage_lr={list(FIVE)}"])).updater.method.param_groups()
    rate = {name: group.lr_mult for group in groups for name in group.names}
    assert rate["classifier.linear.weight"] == rate["classifier.linear.bias"] == 1
    inner = "classifier.network"
    assert rate[f"{inner}.conv1.weight"] == rate[f"{inner}.bn1.bias"] == rate[f"{inner}.layer1.1.conv1.weight"] == 0.1
    assert rate[f"{inner}.layer2.0.conv1.weight"] == rate[f"{inner}.layer3.1.bn2.weight"] == 0.2
    assert rate[f"{inner}.layer4.0.conv1.weight"] == 0.3
    deep = stages(timm.create_model("resnet50d", num_classes=0), 5)
    assert {deep[name] for name in deep if name.startswith(("conv1.0", "conv1.6", "bn1"))} == {0}
    assert deep["layer4.2.conv3.weight"] == 4


def test_rates_go_by_three_blocks_of_mobilenetv3_large() -> None:
    network = timm.create_model("mobilenetv3_large_100", num_classes=0)
    found = stages(network, 5)
    assert set(found) == {name for name, _ in network.named_parameters()}
    blocks = [f"blocks.{i}.{j}" for i, count in enumerate((1, 2, 3, 4, 2, 3)) for j in range(count)]
    assert len(blocks) == 15
    for i, block in enumerate(blocks):
        assert {stage for name, stage in found.items() if name.startswith(f"{block}.")} == {i // 3}, block
    assert found["conv_stem.weight"] == found["bn1.weight"] == 0
    assert found["blocks.6.0.conv.weight"] == found["conv_head.weight"] == 4


def test_other_numbers_of_stages_are_refused() -> None:
    with pytest.raises(UserError, match=r"stage_lr has 4 values, but is for 5 stages of this network"):
        stages(timm.create_model("resnet18", num_classes=0), 4)
    with pytest.raises(UserError, match=r"has 5 values, but is for \d+ stages of this network, or for 11 blocks"):
        stages(timm.create_model("mobilenetv3_small_100", num_classes=0), 5)
    with pytest.raises(UserError, match="stage_lr needs a network of timm"):
        stages(nn.Linear(2, 2), 5)
    with pytest.raises(UserError, match="give either layer_decay or stage_lr"):
        tiny_recipe("finetune", "plain", ["method.stage_lr=[1.0]", "method.layer_decay=0.5"])
    with pytest.raises(UserError, match=r"stage_lr holds factors above 0; got \[0.1, 0.0\]"):
        tiny_recipe("finetune", "plain", ["method.stage_lr=[0.1, 0.0]"])


def test_soft_targets_of_known_labels_are_the_usual_loss() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 3, -1, 2, 2, -1])
    target = one_hot(label, 4)
    found = known_soft_cross_entropy(logits, target, target.sum())
    torch.testing.assert_close(found, known_cross_entropy(logits, label, known(label)))
    assert torch.equal(likeliest(target), label)
    smooth = torch.nn.functional.cross_entropy(logits[[0, 1, 3, 4]], label[[0, 1, 3, 4]], label_smoothing=0.2)
    torch.testing.assert_close(known_soft_cross_entropy(logits, one_hot(label, 4, 0.2), known(label)), smooth)
    assert float(known_soft_cross_entropy(logits, torch.zeros(6, 4), torch.tensor(1))) == 0


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_mixed_as_their_images(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 2, 3])
    images = label.float()[:, None, None, None].expand(4, 3, 16, 16).contiguous()  # an image shows its label
    for _ in range(8):
        mixed, target = regularise.mix(images, one_hot(label, 4), mixup, cutmix)
        shown = mixed.mean((1, 2, 3))
        torch.testing.assert_close(shown, target @ torch.arange(4.0))
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        spread = mixed.flatten(1).amax(1) - mixed.flatten(1).amin(1)
        assert cutmix or float(spread.max()) == 0, "mixup alone mixes all of an image"
        assert mixup or torch.equal(mixed, mixed.round()), "CutMix alone leaves every pixel one image's"
    assert ((target > 0) & (target < 1)).any()
    unmixed = regularise.mix(images, one_hot(label, 4), 0.0, 0.0)
    assert unmixed[0] is images


def test_what_is_drawn_for_an_image_depends_on_its_place_alone() -> None:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = regularise.random_erasing(0.9)
    state = torch.get_rng_state()
    whole = regularise.each(images, augment, torch.Generator().manual_seed(1), Share(6, slice(0, 6)))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left as it was"
    halves = enumerate(images.split(3))
    shares = [Share(6, slice(0, 3)), Share(6, slice(3, 6))]
    parts = [regularise.each(half, augment, torch.Generator().manual_seed(1), shares[r]) for r, half in halves]
    assert torch.equal(torch.cat(parts), whole) and not torch.equal(whole, images)
    other = regularise.each(images, augment, torch.Generator().manual_seed(2), Share(6, slice(0, 6)))
    assert not torch.equal(other, whole)


def test_mixing_resumes_exactly() -> None:
    recipe = tiny_recipe("finetune", "plain", MIXED)
    whole, first = tiny_run(recipe), tiny_run(recipe)
    losses = whole.train(0, 4)
    first.train(0, 2)
    second = tiny_run(recipe)
    second.updater.method.load_state_dict(first.updater.method.state_dict())
    second.updater.optimizer.load_state_dict(first.updater.optimizer.state_dict())
    assert second.train(2, 4) == losses[2:]
    assert all(torch.equal(value, snapshot(whole)[name]) for name, value in snapshot(second).items())


def test_the_smoothing_of_the_recipe_reaches_the_targets() -> None:
    tiny = tiny_run(tiny_recipe("finetune", "plain", ["method.smoothing=0.2", "data.train.batch=4"]))
    target = tiny.updater.views(0, 0, tiny.micros(0)[0])["target"]
    classes = target.shape[1]
    expected = torch.full((classes,), 0.2 / classes)
    expected[0] += 0.8
    torch.testing.assert_close(target.sort(1, descending=True)[0], expected.expand(4, classes).to(target.dtype))


def test_the_average_of_weights_and_statistics_is_what_is_handed_out() -> None:
    tiny = tiny_run(tiny_recipe("finetune", "average", ["method.layer_decay=0.5", "method.ema=0.7"]))
    method = tiny.updater.method
    assert not any("average" in name for group in method.param_groups() for name in group.names)
    states = [snapshot(tiny)]
    for update in range(2):
        tiny.train(update, update + 1)
        states.append(snapshot(tiny))
    network = "network.bn1.running_mean", "network.conv1.weight", "linear.bias"
    for name in network:
        start, first, second = (state[f"classifier.{name}"] for state in states)
        expected = 0.49 * start + 0.21 * first + 0.3 * second
        torch.testing.assert_close(states[2][f"average.{name}"], expected)
        assert not torch.equal(expected, second)
    assert states[2]["average.network.bn1.num_batches_tracked"] == 2
    exported = {name: export.build().state_dict() for name, export in method.exports().items()}
    assert torch.equal(exported["classifier"]["linear.bias"], states[2]["average.linear.bias"])
    assert torch.equal(exported["backbone"]["conv1.weight"], states[2]["average.network.conv1.weight"])


def test_the_average_follows_a_curve_and_none_is_kept_by_default() -> None:
    curve = "method.ema={start: 0.0, end: 1.0, shape: linear, warmup_epochs: 0}"
    tiny = tiny_run(tiny_recipe("finetune", "average", [curve]))
    tiny.train(0, 1)
    state = snapshot(tiny)
    assert torch.equal(state["average.linear.weight"], state["classifier.linear.weight"])  # the curve starts at 0
    assert tiny_run(tiny_recipe("finetune", "average", ["method.ema=null"])).updater.method.average is None
