"""ReLabel: closed forms of label pooling, which map teaches which crop, CutMix, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.toy_stores import write_store
from tiny import tiny_recipe, tiny_run
from torch import Tensor
from torchvision.ops import roi_align

from unlabeled.config.read import read_card, read_recipe
from unlabeled.config.yaml.write import to_yaml
from unlabeled.data.records.labelmaps import classes_of
from unlabeled.data.sources.open import open_source
from unlabeled.engine.steps import make_step
from unlabeled.errors import UserError
from unlabeled.methods.relabel.config import RelabelConfig
from unlabeled.methods.relabel.method import beside
from unlabeled.ops.targets.label_pooling import cell_weights, edges, pool, whole

ABOUT = {"num_classes": 10, "orientation": "row_major_HW", "resize": "squash"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(b: int, k: int, height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Random maps whose cells name k different classes."""
    index = torch.rand(b, height, width, classes, generator=generator()).argsort(3)[..., :k].movedim(3, 1)
    return 15 * (2 * torch.rand(b, k, height, width, generator=generator(1)) - 1), index


def dense(logit: Tensor, index: Tensor, classes: int) -> Tensor:
    return torch.zeros(len(logit), classes, *logit.shape[2:]).scatter_(1, index, logit)


def boxes(n: int, smallest: float = 0.05) -> Tensor:
    """Random edges [n, 4] inside the image."""
    extent = smallest + (1 - smallest) * torch.rand(n, 2, generator=generator(2))
    start = torch.rand(n, 2, generator=generator(3)) * (1 - extent)
    return torch.cat([start, start + extent], 1)


# ---- pooling


@pytest.mark.parametrize(("height", "width"), [(15, 15), (7, 7), (4, 9)])
def test_pooling_is_roi_align_of_the_dense_map(height: int, width: int) -> None:
    logit, index = maps(64, 5, height, width, 30)
    where = boxes(64)
    cells = where * torch.tensor([width, height, width, height]) - 0.5
    rois = torch.cat([torch.arange(64.0)[:, None], cells], 1)
    expected = roi_align(dense(logit, index, 30), rois, (1, 1), aligned=False)[:, :, 0, 0]
    torch.testing.assert_close(pool(logit, index, where, 30), expected, rtol=0, atol=5e-6)


def test_the_whole_map_is_the_mean_of_its_cells() -> None:
    logit, index = maps(3, 5, 15, 15, 20)
    torch.testing.assert_close(pool(logit, index, whole(logit), 20), dense(logit, index, 20).mean((2, 3)))
    torch.testing.assert_close(cell_weights(torch.zeros(1), torch.ones(1), 15), torch.full((1, 15), 1 / 15))


def test_weights_of_boxes_inside_the_image_sum_to_1() -> None:
    where = boxes(200, 0.01)
    for cells in (1, 4, 15):
        weights = cell_weights(where[:, 0], where[:, 2], cells)
        torch.testing.assert_close(weights.sum(1), torch.ones(200))
        assert weights.min() >= 0
    logit = torch.full((200, 1, 7, 7), 3.0)
    pooled = pool(logit, torch.ones(200, 1, 7, 7, dtype=torch.int64), where, 3)
    torch.testing.assert_close(pooled, torch.tensor([[0.0, 3.0, 0.0]]).expand(200, 3))


def test_what_lies_outside_of_the_image_counts_as_zero() -> None:
    """A box of which half is outside: its four points are at -2, -1, 0 and 1; below -1 there is nothing."""
    weights = cell_weights(torch.tensor([-0.5]), torch.tensor([0.5]), 4)
    assert weights.tolist() == [[0.5, 0.25, 0.0, 0.0]]


def test_mirrored_together_nothing_changes_but_mirrored_boxes_alone_do() -> None:
    logit, index = maps(16, 5, 15, 15, 30)
    where = boxes(16, 0.3)
    target = pool(logit, index, where, 30).softmax(1)
    mirrored = torch.stack([1 - where[:, 2], where[:, 1], 1 - where[:, 0], where[:, 3]], 1)
    both = pool(logit.flip(3), index.flip(3), mirrored, 30).softmax(1)
    torch.testing.assert_close(both, target, rtol=0, atol=1e-6)
    assert (pool(logit, index, mirrored, 30).softmax(1) - target).abs().max() > 1e-3


def test_closed_forms_of_targets() -> None:
    empty = pool(torch.zeros(2, 5, 15, 15), torch.zeros(2, 5, 15, 15, dtype=torch.int64), boxes(2), 8).softmax(1)
    torch.testing.assert_close(empty, torch.full((2, 8), 1 / 8))
    top = pool(torch.full((1, 1, 15, 15), 10.0), torch.full((1, 1, 15, 15), 3), boxes(1), 1000).softmax(1)
    assert float(top[0, 3]) == pytest.approx(math.exp(10) / (math.exp(10) + 999), rel=1e-5)
    torch.testing.assert_close(top.sum(1), torch.ones(1))
    assert top.min() > 0


def test_half_precision_changes_targets_little() -> None:
    logit, index = maps(32, 5, 15, 15, 40)
    logit = logit.clamp(-16, 16)
    where = boxes(32)
    exact = pool(logit, index, where, 40).softmax(1)
    stored = pool(logit.half(), index.to(torch.uint16), where, 40).softmax(1)
    assert (stored - exact).abs().max() < 2e-3


def test_a_flipped_crop_shows_the_same_region() -> None:
    box = torch.tensor([[10.0, 20.0, 30.0, 40.0, 100.0, 80.0, 0.0]])
    assert edges(box).tolist() == [pytest.approx([0.25, 0.1, 0.75, 0.4])]
    flipped = box.clone()
    flipped[:, -1] = 1
    assert torch.equal(edges(flipped), edges(box))


# ---- views


def shown(case: str, *more: str, store: Path | None = None):
    """Run the views of a tiny run's first update: the run, its batch and its views."""
    own = [f"data.train.records={{labelmap: {store}}}"] if store else []
    tiny = tiny_run(tiny_recipe("relabel", case, [*own, *more]))
    batch = tiny.micros(0)[0]
    return tiny, batch, tiny.updater.views(0, 0, batch)


@pytest.fixture
def quarters(tmp_path: Path) -> Path:
    """Maps of 2 x 2 cells, each of which names its own class, clearly."""
    source = open_source(read_card("digits"), "train")
    index = np.broadcast_to(np.arange(4, dtype=np.uint16).reshape(1, 1, 2, 2), (len(source), 1, 2, 2))
    logit = np.full(index.shape, 20, np.float16)
    return write_store(tmp_path / "maps", source, "labelmap", {"logit": logit, "index": index}, **ABOUT)


def test_a_crop_learns_what_stands_in_its_part_of_the_map(quarters: Path) -> None:
    _, batch, views = shown("plain", "method.cutmix=null", "method.crop.area=[0.05, 0.2]", store=quarters)
    box = edges(batch["train"].boxes[0])
    across, down = box[:, 0] + box[:, 2] - 1, box[:, 1] + box[:, 3] - 1
    clear = (across.abs() > 0.01) & (down.abs() > 0.01)  # not in the middle, where two cells count alike
    found = views["target"].argmax(1)[clear]
    assert torch.equal(found, (2 * (down > 0) + 1 * (across > 0))[clear])
    assert len({*found.tolist()}) == 4
    _, _, same = shown("whole", "method.cutmix=null", "method.crop.area=[0.05, 0.2]", store=quarters)
    torch.testing.assert_close(same["target"], same["target"][:1].expand(24, 10))


def test_targets_need_no_label_and_labels_no_map() -> None:
    _, batch, views = shown("plain")
    assert batch["train"].label is None and set(batch["train"].records) == {"labelmap"}
    assert views["target"].dtype == torch.float32 and not views["target"].requires_grad
    _, batch, views = shown("labels", "method.cutmix=null")
    assert not batch["train"].records
    expected = torch.nn.functional.one_hot(batch["train"].label, 10) * 0.9 + 0.01
    torch.testing.assert_close(views["target"], expected)


def test_zero_logits_cost_log_c() -> None:
    tiny, _, _ = shown("plain")
    torch.nn.init.zeros_(tiny.updater.method.classifier.linear.weight)
    torch.nn.init.zeros_(tiny.updater.method.classifier.linear.bias)
    losses = tiny.losses(0)[2]
    assert losses.terms["labels"].item() == pytest.approx(math.log(10), rel=1e-6)


# ---- CutMix


def test_partners_stand_beside_each_other() -> None:
    assert beside(torch.zeros(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert beside(torch.zeros(5)).tolist() == [1, 0, 3, 2, 4]
    assert beside(torch.zeros(1)).tolist() == [0]


def test_images_and_targets_are_mixed_alike_by_one_box() -> None:
    _, _, plain = shown("plain", "method.cutmix=null")
    _, _, mixed = shown("plain")
    moved = (mixed["view"] != plain["view"]).any(1)
    box = moved.any(0)
    share = box.double().mean()
    assert 0 < share < 1
    partner = beside(plain["view"])
    expected = torch.where(box, plain["view"][partner], plain["view"])
    assert torch.equal(mixed["view"], expected)
    target = (1 - share) * plain["target"] + share * plain["target"][partner]
    torch.testing.assert_close(mixed["target"], target.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed["target"].sum(1), torch.ones(24))


def test_cutmix_that_is_never_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"no effect: it is off in the last 5 epochs, and the run has 5; lower method"):
        shown("plain", "method.cutmix={off_last_epochs: 5}", "train.updates=270")  # five epochs of 54


def test_the_last_epochs_are_not_mixed_and_p_of_the_batches_are() -> None:
    tiny, batch, _ = shown("plain", "method.cutmix={off_last_epochs: 5}", "train.updates=540")  # ten epochs of 54
    method, plan = tiny.updater.method, tiny.updater.plan
    assert plan.epochs == 10

    def is_mixed(update: int) -> bool:
        step = make_step(plan, update, 0, 0, 0)
        with_it, method.cfg = method.views(batch, step), method.cfg.model_copy(update={"cutmix": None})
        without = method.views(batch, make_step(plan, update, 0, 0, 0))
        method.cfg = method.cfg.model_copy(update={"cutmix": cut})
        return not torch.equal(with_it["view"], without["view"])

    cut = method.cfg.cutmix
    assert [is_mixed(54 * epoch) for epoch in range(3, 8)] == [True, True, False, False, False]
    cut = cut.model_copy(update={"p": 0.3})
    method.cfg = method.cfg.model_copy(update={"cutmix": cut})
    assert 0.15 < sum(is_mixed(update) for update in range(100)) / 100 < 0.45


# ---- what is refused


def test_options_without_a_user_are_refused() -> None:
    with pytest.raises(ValueError, match="'smoothing' has no effect with targets: labelmap"):
        RelabelConfig(smoothing=0.1)
    with pytest.raises(ValueError, match="'pooling' has no effect with targets: label"):
        RelabelConfig(targets="label", pooling="whole")


@pytest.mark.parametrize("case", ["plain", "whole", "labels"])
def test_a_run_reads_the_recipe_that_it_wrote(case: str, tmp_path: Path) -> None:
    recipe = tiny_recipe("relabel", case)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(("key", "value"), [("orientation", "col_major_WH"), ("resize", "crop")])
def test_maps_that_lie_otherwise_are_refused(key: str, value: str, quarters: Path) -> None:
    with pytest.raises(UserError, match=f"label maps have {key} '{value}'.*unlabeled labelmaps, or unlabeled convert"):
        classes_of({**ABOUT, key: value})


def test_maps_of_other_classes_another_split_or_none_are_refused(tmp_path: Path) -> None:
    source = open_source(read_card("digits"), "train")
    columns = {"logit": np.zeros((len(source), 1, 2, 2), np.float16), "index": np.zeros((len(source), 1, 2, 2), "<u2")}
    few = write_store(tmp_path / "few", source, "labelmap", columns, **{**ABOUT, "num_classes": 7})
    with pytest.raises(UserError, match="knows 7 classes, but data card 'digits' has 10"):
        shown("plain", store=few)
    turned = write_store(tmp_path / "turned", source, "labelmap", columns, **ABOUT, classes=source.classes[::-1])
    with pytest.raises(UserError, match=r"calls class 0 .*bring the card's classes into the teacher's"):
        shown("plain", store=turned)
    val = open_source(read_card("digits"), "val")
    other = {name: values[: len(val)] for name, values in columns.items()}
    with pytest.raises(UserError, match=r"holds rows of 500 samples of 'val' of 'digits', but split 'train'"):
        shown("plain", store=write_store(tmp_path / "val", val, "labelmap", other, **ABOUT))
    with pytest.raises(UserError, match=r"reads labelmap rows.*unlabeled labelmaps.*records.labelmap=FOLDER"):
        tiny_run(tiny_recipe("relabel", "plain", ["data.train.records={}"]))


def test_a_set_without_named_classes_takes_those_of_the_maps(tmp_path: Path, quarters: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((40, 8, 8, 3), np.uint8))
    card = tmp_path / "mine.yaml"
    card.write_text("name: mine\nsource: {kind: array}\nroot: $CARD\nsplits: {train: {path: x.npy}}\nin_memory: true\n")
    source = open_source(read_card(card), "train")
    columns = {"logit": np.zeros((40, 1, 2, 2), np.float16), "index": np.zeros((40, 1, 2, 2), "<u2")}
    store = write_store(tmp_path / "maps", source, "labelmap", columns, **{**ABOUT, "num_classes": 6})
    own = [f"data.train={{card: {card}, batch: 20, records: {{labelmap: {store}}}}}"]
    _, _, views = shown("plain", *own)
    assert views["target"].shape == (20, 6)
    with pytest.raises(UserError, match="reads labelmap rows of every image"):
        tiny_run(tiny_recipe("relabel", "plain", [f"data.train={{card: {card}, batch: 20}}"]))
