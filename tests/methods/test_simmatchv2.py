"""SimMatchV2's closed forms and switches (the arrays of the published code are tested in tests/golden)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import run_processes
from tiny import Tiny, snapshot, tiny_recipe, tiny_run
from torch import Tensor, nn

from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.read import read_file, read_recipe
from unlabeled.data.sources.open import open_source
from unlabeled.data.streams import OpenStream, open_streams
from unlabeled.engine import build
from unlabeled.engine.dry_run import buffer_sizes
from unlabeled.engine.online import Online
from unlabeled.engine.steps import make_step
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, Input, StreamInfo
from unlabeled.methods.simmatchv2 import (
    LabeledBank,
    Prediction,
    SimMatchV2,
    Targets,
    UnlabeledBank,
    align,
    consistency,
    first_row,
    propagate,
    transition,
)
from unlabeled.methods.simmatchv2_config import SimMatchV2Config

N, C, D, K = 9, 4, 6, 30


def units(n: int, d: int = D, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def probs(n: int, c: int = C, seed: int = 0) -> Tensor:
    return (2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).softmax(1)


def labeled_bank(n: int = N) -> LabeledBank:
    bank = LabeledBank(torch.arange(n) % C, D).double()
    bank.feature.copy_(units(n, seed=5))
    return bank


def unlabeled_bank(prob: Tensor) -> UnlabeledBank:
    bank = UnlabeledBank(K, D, C, "zero").double()
    bank.feature.copy_(units(K, seed=6))
    bank.prob.copy_(prob)
    return bank


def targets(prob: Tensor, edge: Tensor) -> Targets:
    return Targets(prob, prob, torch.ones(len(prob), dtype=prob.dtype), edge)


# ---- the graph


def test_without_alpha_labels_stay() -> None:
    assert torch.equal(propagate(units(5), probs(5), labeled_bank(), 3, 0.0, 0.1), probs(5))


def test_rows_sum_to_one() -> None:
    nodes = units(20).view(4, 5, D)
    walk = transition(nodes, 0.1)
    assert torch.equal(walk.diagonal(dim1=1, dim2=2), torch.zeros(4, 5, dtype=torch.float64))
    label = propagate(units(5), probs(5), labeled_bank(), 4, 0.3, 0.1)
    for rows in (walk.sum(2), first_row(walk, 0.3).sum(1), label.sum(1)):
        torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=1e-12)


def test_one_orthogonal_neighbour_has_a_closed_form() -> None:
    alpha, nodes = 0.1, torch.eye(2, D, dtype=torch.float64)[None]
    walk = transition(nodes, 0.1)
    assert walk[0].tolist() == [[0, 1], [1, 0]]
    expected = torch.tensor([[1, alpha]], dtype=torch.float64) / (1 + alpha)
    torch.testing.assert_close(first_row(walk, alpha), expected)


def test_the_solution_is_the_inverses_first_row() -> None:
    walk = transition(units(24).view(4, 6, D), 0.5)
    inverse = 0.8 * torch.linalg.inv(torch.eye(6, dtype=torch.float64) - 0.2 * walk)
    torch.testing.assert_close(first_row(walk, 0.2), inverse[:, 0])


def test_the_order_of_the_labelled_images_does_not_matter() -> None:
    bank, order = labeled_bank(), torch.randperm(N, generator=torch.Generator().manual_seed(1))
    mixed = LabeledBank(bank.label[order], D).double()
    mixed.feature.copy_(bank.feature[order])
    both = [propagate(units(5), probs(5), each, 4, 0.1, 0.1) for each in (bank, mixed)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-14)


def test_neighbours_pull_towards_their_labels() -> None:
    bank = labeled_bank()
    uniform = torch.full((N, C), 1 / C, dtype=torch.float64)
    found = propagate(bank.feature, uniform, bank, 1, 0.3, 0.1)
    assert found.argmax(1).tolist() == bank.label.tolist()
    # two nodes, which walk to and fro
    assert float(found.amax(1)[0]) == pytest.approx((1 / C + 0.3) / 1.3)


def test_alignment_by_a_uniform_mean_changes_nothing_and_by_the_own_mean_evens_out() -> None:
    p = probs(6)
    torch.testing.assert_close(align(p, torch.full((C,), 1 / C, dtype=torch.float64)), p)
    one = p[:1]
    torch.testing.assert_close(align(one, one[0]), torch.full((1, C), 1 / C, dtype=torch.float64))


# ---- losses


def test_equal_edges_give_their_entropy_and_no_gradient() -> None:
    bank, embedding = unlabeled_bank(probs(K)), units(5, seed=3).requires_grad_()
    edge = (embedding.detach() @ bank.feature.T / 0.1).softmax(1)
    _, edge_edge, _ = consistency(Prediction(torch.zeros(5, C), embedding), targets(probs(5), edge), bank, 0.1)
    assert float(edge_edge.detach()) == pytest.approx(float(-(edge * edge.log()).sum(1).mean()))
    edge_edge.backward()
    assert float(embedding.grad.abs().max()) < 1e-12


def test_a_uniform_bank_gives_log_classes_and_no_gradient() -> None:
    bank = unlabeled_bank(torch.full((K, C), 1 / C, dtype=torch.float64))
    embedding = units(5, seed=3).requires_grad_()
    _, _, edge_node = consistency(Prediction(torch.zeros(5, C), embedding), targets(probs(5), probs(5, K)), bank, 0.1)
    assert float(edge_node.detach()) == pytest.approx(math.log(C))
    edge_node.backward()
    assert float(embedding.grad.abs().max()) < 1e-12


def test_a_bank_filled_in_part_adds_the_log_of_the_share() -> None:
    """Where all embeddings are equal, the share of the rows is the share of the similarity."""
    prob = torch.zeros(K, C, dtype=torch.float64)
    prob[: K // 3] = 1 / C
    bank = unlabeled_bank(prob)
    bank.feature.copy_(units(1).expand(K, -1))
    _, _, edge_node = consistency(Prediction(torch.zeros(5, C), units(5)), targets(probs(5), probs(5, K)), bank, 0.1)
    assert float(edge_node.detach()) == pytest.approx(math.log(C) + math.log(3))


def test_random_weights_start_near_log_classes_and_log_bank() -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain", ["method.bank=4800", "method.temperature=1.0"]))
    terms = tiny.updater.model(tiny.updater.views(0, 0, tiny.micros(0)[0]), step(tiny)).terms
    assert float(terms["supervised"].detach()) == pytest.approx(math.log(10), rel=0.15)
    assert float(terms["edge_edge"].detach()) == pytest.approx(math.log(4800), rel=0.02)


# ---- banks


def test_an_image_that_comes_twice_keeps_its_last_embedding() -> None:
    bank, before, new = labeled_bank(), labeled_bank().feature, units(4, seed=8)
    bank.write(torch.tensor([2, 7, 2, 0]), new)
    expected = before.clone()
    expected[2], expected[7], expected[0] = new[2], new[1], new[3]
    assert torch.equal(bank.feature, expected)


def test_the_bank_of_unlabelled_images_wraps() -> None:
    bank = UnlabeledBank(6, 3, 2, "uniform")
    assert bank.prob.unique().tolist() == [0.5]
    rows = [torch.full((4, 3), float(i)) for i in range(3)]
    for row in rows:
        bank.push(row, row[:, :2])
    assert bank.feature[:, 0].tolist() == bank.prob[:, 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert int(bank.pointer) == 0


def test_aligned_predictions_are_kept_and_raw_ones_move_the_mean() -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain"))
    method = tiny.updater.method
    method.running.copy_(probs(1, 10)[0])
    views, running = tiny.updater.views(0, 0, tiny.micros(0)[0]), method.running.clone()
    carry = method(views, step(tiny)).carry
    _, prob, raw = carry["weak"].split([method.cfg.embed_dim, 10, 10], 1)
    torch.testing.assert_close(align(raw, running), prob)
    assert (prob - raw).abs().max() > 0.01
    method.after_step(step(tiny), carry)
    assert torch.equal(method.unlabeled_bank.prob[:24], prob) and int(method.unlabeled_bank.pointer) == 24
    torch.testing.assert_close(method.running, 0.9 * running + 0.1 * raw.mean(0))


def test_without_alignment_predictions_and_mean_stay_as_they_are() -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain", ["method.align=false"]))
    method = tiny.updater.method
    method.running.copy_(probs(1, 10)[0])
    running, carry = method.running.clone(), method(tiny.updater.views(0, 0, tiny.micros(0)[0]), step(tiny)).carry
    _, prob, raw = carry["weak"].split([method.cfg.embed_dim, 10, 10], 1)
    method.after_step(step(tiny), carry)
    assert torch.equal(prob, raw) and torch.equal(method.running, running)


# ---- the method


def step(tiny: Tiny, update: int = 0):
    return make_step(tiny.updater.plan, update, 0, tiny.updater.seed, 0)


def gradients(variant: str, overrides: Sequence[str] = (), update: int = 0) -> tuple[SimMatchV2, dict[str, Tensor]]:
    """The method after `update` updates, and the terms of the next one after its backward pass."""
    tiny = tiny_run(tiny_recipe("simmatchv2", variant, overrides))
    tiny.train(0, update)
    terms = tiny.updater.model(tiny.updater.views(update, 0, tiny.micros(update)[0]), step(tiny, update)).terms
    sum(terms.values()).backward()
    return tiny.updater.method, {name: term.detach() for name, term in terms.items()}


def test_an_empty_bank_has_no_labels_to_agree_with() -> None:
    method, terms = gradients("plain")
    assert float(terms["edge_node"]) == 0 and float(terms["edge_edge"]) > 0
    assert all(p.grad is not None for p in method.student.parameters())
    _, terms = gradients("plain", update=1)
    assert math.isfinite(terms["edge_node"]) and float(terms["edge_node"]) > 0


def test_above_every_confidence_only_labels_teach_the_classifier() -> None:
    never = ["method.threshold=1.5", "method.bank_init=uniform"]
    method, terms = gradients("plain", never)
    assert float(terms["node_node"]) == 0 and method.student.head[2].weight.grad.abs().max() > 0
    only, _ = gradients("plain", [*never, "method.lambda_nn=0", "method.lambda_ee=0", "method.lambda_en=0"])
    assert torch.equal(only.student.classifier.weight.grad, method.student.classifier.weight.grad)
    assert only.student.head[2].weight.grad.abs().max() == 0


def test_nothing_flows_to_the_teacher_the_banks_or_the_weak_views() -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain"))
    tiny.train(0, 1)
    method = tiny.updater.method
    views = tiny.updater.views(1, 0, tiny.micros(1)[0])
    views = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in views.items()}
    sum(method(views, step(tiny, 1)).terms.values()).backward()
    assert views["weak"].grad is None
    assert views["labeled"].grad.abs().max() > 0 and views["strong0"].grad.abs().max() > 0
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())
    assert not any(b.requires_grad for b in method.buffers())


def test_the_first_strong_views_share_a_batch_with_the_labelled_images() -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "multicrop"))
    seen: dict[str, list[tuple[int, int]]] = {"student": [], "teacher": []}
    for name, into in seen.items():
        backbone = getattr(tiny.updater.method, name).backbone
        backbone.register_forward_pre_hook(lambda _, x, into=into: into.append((len(x[0]), x[0].shape[-1])))
    tiny.train(0, 1)
    assert seen == {"student": [(12 + 24, 12), (24, 10), (24, 8)], "teacher": [(12 + 24, 12)]}


@pytest.mark.parametrize("kind", ["plain", "eman"])
def test_how_the_teacher_follows(kind: str) -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain", [f"method.ema.kind={kind}", "method.ema.momentum=0.999"]))
    method = tiny.updater.method
    before = {name: x.clone() for name, x in method.teacher.state_dict().items()}
    tiny.train(0, 1)
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert all(m.training == (kind == "plain") for m in method.teacher.modules())
    assert all(m.training for m in method.student.modules())
    parameters = {name for name, _ in method.teacher.named_parameters()}
    for name, value in teacher.items():
        mean = 0.999 * before[name] + 0.001 * student[name] if value.is_floating_point() else student[name]
        if name in parameters or kind == "eman":
            torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7, msg=name)
        elif name.endswith("running_mean"):  # its own, from the weak views that it saw
            assert not torch.equal(value, before[name]) and not torch.allclose(value, mean)


def test_losses_and_banks_are_float32_under_autocast() -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain", ["train.precision=bf16"]))
    tiny.train(0, 1)
    losses = tiny.updater.model(tiny.updater.views(1, 0, tiny.micros(1)[0]), step(tiny, 1))
    assert {x.dtype for x in losses.terms.values()} == {torch.float32}
    assert losses.carry["weak"].dtype == losses.carry["labeled"].dtype == torch.float32
    method = tiny.updater.method
    assert {b.dtype for b in (method.unlabeled_bank.prob, method.unlabeled_bank.feature)} == {torch.float32}
    torch.testing.assert_close(losses.carry["weak"][:, : method.cfg.embed_dim].norm(dim=1), torch.ones(24))


def test_exports_are_student_and_teacher() -> None:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain"))
    tiny.train(0, 2)
    method = tiny.updater.method.eval()
    x = torch.rand(3, 3, 12, 12)
    exports = method.exports()
    assert list(exports) == ["classifier", "backbone", "teacher-classifier", "teacher-backbone"]
    for prefix, network in (("", method.student), ("teacher-", method.teacher)):
        assert torch.equal(exports[f"{prefix}classifier"].build()(x), network(x).logits)
        assert torch.equal(exports[f"{prefix}backbone"].build()(x), network.backbone(x))
    assert not torch.equal(method.student(x).logits, method.teacher(x).logits)


def test_images_are_normalised_as_the_start_was() -> None:
    class Start(nn.Flatten):
        num_features, input = 12, Input(2, (0.5, 0.5, 0.5), (0.1, 0.1, 0.1))

    crop = {"kind": "padded", "size": 2}
    cfg = SimMatchV2Config(topn=1, bank=4, crop=crop, strong=[crop])
    streams = {"labeled": StreamInfo(2, 2, torch.tensor([0, 1])), "unlabeled": StreamInfo(8, 4)}
    info = Info(0, 0, 1, 2, streams, mean=(0.1, 0.1, 0.1), std=(0.2, 0.2, 0.2))
    assert SimMatchV2(cfg, lambda source=None: Start(), info).input == Start.input


# ---- several processes with BatchNorm of their own


def shuffled(number: int, sync: bool) -> dict:
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain", [f"train.sync_bn={str(sync).lower()}"]))
    views, method = tiny.updater.views(0, 0, tiny.micros(0)[0]), tiny.updater.method
    x = torch.cat([views["labeled"], views["weak"]])
    at = make_step(tiny.updater.plan, 0, 0, 0, number)
    seen = method._teacher(x, at)
    tiny.train(0, 3)
    return {"x": x.numpy(), "logits": seen.logits.numpy(), "state": {k: v.numpy() for k, v in snapshot(tiny).items()}}


@pytest.mark.parametrize("sync", [False, True])
def test_the_teachers_images_change_processes_where_batchnorm_is_local(sync: bool) -> None:
    parts = run_processes(2, shuffled, sync)
    for name, value in parts[0]["state"].items():
        assert np.array_equal(value, parts[1]["state"][name]), f"{name} differs between ranks"
    tiny = tiny_run(tiny_recipe("simmatchv2", "plain", ["train.sync_bn=false"]))
    x = torch.cat([torch.from_numpy(part["x"]) for part in parts])
    found = torch.cat([torch.from_numpy(part["logits"]) for part in parts])
    order = torch.randperm(len(x), generator=step(tiny).shared)
    mixed = torch.cat([tiny.updater.method.teacher(half).logits for half in x[order].chunk(2)])[order.argsort()]
    own = torch.cat([tiny.updater.method.teacher(half).logits for half in x.chunk(2)])
    whole = tiny.updater.method.teacher(x).logits
    expected, others = (whole, (mixed, own)) if sync else (mixed, (own, whole))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all((found - other).abs().max() > 1e-3 for other in others)


# ---- two streams


def test_labelled_images_come_equally_often_and_unlabelled_ones_are_the_clock() -> None:
    recipe = tiny_recipe("simmatchv2", "plain", ["train.updates=60"])
    tiny = tiny_run(recipe)
    assert tiny.updater.plan.updates_per_epoch == 1297 // 24
    seen = torch.cat([tiny.micros(u)[0]["labeled"].index for u in range(40)])
    assert torch.bincount(seen, minlength=40).tolist() == [12] * 40  # 40 updates of 12, from 40 images
    batch = tiny.micros(0)[0]["labeled"]
    label = torch.from_numpy(open_streams(recipe)["labeled"].source.labels)
    assert torch.equal(batch.label, label[batch.index])
    assert torch.equal(tiny.updater.method.labeled_bank.label, label)


def test_while_training_the_classifier_is_measured() -> None:
    recipe = tiny_recipe("simmatchv2", "plain", ["eval.every=1", "eval.queries=50"])
    tiny = tiny_run(recipe)
    source = open_streams(recipe)["unlabeled"].source
    online = Online(recipe, tiny.updater.plan, source, torch.device("cpu"))
    found = online.measure(tiny.updater.method)
    assert list(found) == ["online_train_accuracy"]
    assert found["online_train_accuracy"] in {2.0 * right for right in range(51)}
    assert online.report(3, found) == [f"after 3 updates: online_train_accuracy {found['online_train_accuracy']:.3g}"]


def test_the_bytes_of_the_banks_are_told() -> None:
    method = tiny_run(tiny_recipe("simmatchv2", "plain", ["method.bank=24000"])).updater.method
    told_sizes = buffer_sizes(method)
    assert f"unlabeled_bank.feature {24000 * 64 * 4 / 2**20:.2f}" in told_sizes
    assert f"unlabeled_bank.prob {24000 * 10 * 4 / 2**20:.2f}" in told_sizes


# ---- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.topn=41"], "method.topn is 41, but data.labeled has only 40 images"),
        (["method.bank=100"], "method.bank 100 is no multiple of data.unlabeled.batch 24; 96 is"),
        (["method.bank=10"], "; 24 is"),
        (["data.labeled.epoch_samples=100"], "data.labeled.epoch_samples has no effect: .* data.unlabeled"),
        (["data.labeled.batch=7", "train.grad_accum=2"], "data.labeled.batch 7 does not divide"),
    ],
)
def test_numbers_that_do_not_fit(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_run(tiny_recipe("simmatchv2", "plain", overrides))


def test_labels_that_are_missing() -> None:
    recipe = tiny_recipe("simmatchv2", "plain")
    labels = torch.arange(40) % 10
    streams = {"unlabeled": StreamInfo(1297, 24)}
    for changed, message in (
        (torch.where(labels == 3, 4, labels), "data.labeled has no image of class 3; each of the 10 classes needs one"),
        (torch.where(labels == 3, -1, labels), r"data.labeled: 4 of 40 images have no label; .*data.labeled.subset"),
    ):
        info = Info(0, 0, 1, 10, streams | {"labeled": StreamInfo(40, 12, changed)})
        with pytest.raises(UserError, match=message):
            SimMatchV2(recipe.method, lambda source=None: nn.Identity(), info)
    with pytest.raises(UserError, match="names none"):
        SimMatchV2(recipe.method, lambda source=None: nn.Identity(), Info(0, 0, 1, None, streams))


def test_a_missing_folder_is_told_by_its_stream() -> None:
    with pytest.raises(UserError, match=r"data.labeled.root=FOLDER"):
        open_streams(read_recipe("simmatchv2", ["data.labeled.root=/nowhere", "train.precision=auto"]))


def test_a_first_strong_view_of_another_size() -> None:
    with pytest.raises(UserError, match=r"first view of 'strong' has 10 pixels, but 'crop' 12"):
        read_recipe("demo/simmatchv2", ["method.strong=[{kind: affine, size: 10}]"])


def test_an_option_of_the_other_augmentation() -> None:
    with pytest.raises(UserError, match=r"unknown key 'method.augment.blur_p'. Known here: kind, operations, square"):
        read_recipe("demo/simmatchv2", ["method.augment={kind: randaugment, blur_p: 1}"])


def test_streams_of_other_methods() -> None:
    with pytest.raises(UserError, match="'simmatchv2' reads the streams: labeled, unlabeled; 'data' has: unlabeled"):
        read_recipe("demo/simmatchv2", ["data.labeled=null"])
    with pytest.raises(UserError, match="'simclrv2' reads the streams: train; 'data' has: train, labeled"):
        read_recipe("demo/simclrv2", ["data.labeled={card: digits, batch: 16}"])


def test_a_streamed_set_has_no_places() -> None:
    recipe = tiny_recipe("simmatchv2", "plain")
    opened = open_streams(recipe)
    source = open_source(read_file(find("data", "digits"), Card), "train")
    source.random_access = False
    opened["labeled"] = OpenStream(opened["labeled"].card, source)
    with pytest.raises(UserError, match=r"data.labeled: every image needs its place, .* is streamed"):
        build.train_streams(recipe, opened, tiny_run(recipe).updater.plan)
