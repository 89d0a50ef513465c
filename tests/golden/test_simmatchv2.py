"""SimMatchV2 against arrays computed with the published code; there the image is the backbone's vector already."""

from __future__ import annotations

import re

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Case, close, tensor
from processes import run_processes
from torch import Tensor, nn

from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.data import order
from unlabeled.engine.plan import Plan, learning_rate
from unlabeled.engine.steps import make_step
from unlabeled.methods import simmatchv2
from unlabeled.methods.base import Info, StreamInfo
from unlabeled.methods.simmatchv2 import SimMatchV2
from unlabeled.methods.simmatchv2_config import SimMatchV2Config
from unlabeled.ops.curves import value_at
from unlabeled.ops.distributed import rank, world

KINDS = ("simmatchv2_step", "simmatchv2_fresh_bank", "simmatchv2_dist2", "simmatchv2_schedules")
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
LOSSES = {"sup": "supervised", "nn": "node_node", "ee": "edge_edge", "ne": "edge_node"}


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


class Vector(nn.Identity):
    """The backbone of the arrays: what comes in is the vector."""

    input = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def plan(total: int = 100, per_epoch: int = 10, warmup: int = 0, lr: float = 0.1) -> Plan:
    optim = Optim(name="sgd", lr=LearningRate(base=lr, every="epoch", warmup_rule="(k+1)/w"))
    return Plan(1, 1, per_epoch, total, total, learning_rate(optim, 1, total, warmup, per_epoch))


def method_of(case: Case, dtype: torch.dtype) -> SimMatchV2:
    """The method of the case, with its weights and its state before the step, in this process."""
    streams = int(case["hp_num_strong"])
    crop = {"size": 8}
    cfg = SimMatchV2Config(
        embed_dim=int(case["hp_embed_dim"]),
        feature_norm=bool(case["hp_norm_feat"]),
        temperature=float(case["hp_temperature"]),
        topn=int(case["hp_topn"]),
        alpha=float(case["hp_alpha"]),
        threshold=float(case["hp_threshold"]),
        bank=int(case["hp_bank_size"]),
        align=bool(case["hp_use_da"]),
        align_momentum=float(case["hp_da_momentum"]),
        lambda_nn=float(case["hp_lambda_nn"]),
        lambda_ee=float(case["hp_lambda_ee"]),
        lambda_en=float(case["hp_lambda_ne"]),
        ema={"momentum": 1.0},  # the arrays hold the networks as they are
        crop=crop,
        strong=[crop] * streams,
    )
    labels = torch.from_numpy(case["label_of_bank"])
    info = Info(
        0,
        rank(),
        world(),
        int(case["hp_num_classes"]),
        {
            "labeled": StreamInfo(len(labels), int(case["hp_batch_labeled"]) * world(), labels),
            "unlabeled": StreamInfo(1000, int(case["hp_batch_unlabeled"]) * world()),
        },
    )
    method = SimMatchV2(cfg, lambda source=None: Vector(int(case["hp_feature_dim"])), info).to(dtype)
    fill(method.student, "param_main", case)
    fill(method.teacher, "param_ema", case)
    fill_banks(method, {name.removesuffix("_before"): value for name, value in case.items() if "_before" in name})
    return method


def fill(network: simmatchv2.Network, prefix: str, case: Case) -> None:
    parts = {"norm": network.norm, "fc": network.classifier, "head_0": network.head[0], "head_2": network.head[2]}
    with torch.no_grad():
        for name, module in parts.items():
            for kind, p in module.named_parameters():
                p.copy_(torch.from_numpy(case[f"{prefix}_{name}_{kind}"]))


def fill_banks(method: SimMatchV2, state: Case) -> None:
    method.labeled_bank.feature.copy_(torch.from_numpy(state["bank_l_feat"]))
    method.unlabeled_bank.feature.copy_(torch.from_numpy(state["bank_u_feat"]))
    method.unlabeled_bank.prob.copy_(torch.from_numpy(state["bank_u_prob"]))
    method.unlabeled_bank.pointer.fill_(int(state["ptr"][0]))
    method.running.copy_(torch.from_numpy(state["da"][0]))


def banks(method: SimMatchV2) -> Case:
    state = {
        "bank_l_feat": method.labeled_bank.feature,
        "bank_u_feat": method.unlabeled_bank.feature,
        "bank_u_prob": method.unlabeled_bank.prob,
        "ptr": method.unlabeled_bank.pointer[None],
        "da": method.running[None],
    }
    return {name: value.clone().numpy() for name, value in state.items()}


def views_of(case: Case, dtype: torch.dtype, prefix: str = "") -> dict[str, Tensor]:
    strong = tensor(case[f"{prefix}in_strong"], dtype)
    made = {f"strong{i}": view.clone().requires_grad_() for i, view in enumerate(strong)}
    made["labeled"] = tensor(case[f"{prefix}in_labeled"], dtype).requires_grad_()
    made["weak"] = tensor(case[f"{prefix}in_weak"], dtype).requires_grad_()
    numbers = {"label": case[f"{prefix}in_targets"], "index": case[f"{prefix}in_bank_index"]}
    return made | {name: torch.from_numpy(value) for name, value in numbers.items()}


def teach(method: SimMatchV2, case: Case, dtype: torch.dtype, prefix: str) -> tuple:
    views = views_of(case, dtype, prefix)
    return method._teach(views["labeled"], views["weak"], make_step(plan(), 0, 0, 0, rank()))


def step_and_losses(method: SimMatchV2, case: Case, dtype: torch.dtype, prefix: str = "") -> tuple[dict, dict]:
    """One forward and backward pass and what follows the update, which the arrays do not make; views and values."""
    views, step = views_of(case, dtype, prefix), make_step(plan(), 0, 0, 0, rank())
    losses = method(views, step)
    total = sum(losses.terms.values())
    total.backward()
    weights = {"sup": 1.0, "nn": method.cfg.lambda_nn, "ee": method.cfg.lambda_ee, "ne": method.cfg.lambda_en}
    values = {short: float(losses.terms[name].detach()) / weights[short] for short, name in LOSSES.items()}
    method.after_step(step, losses.carry)
    return views, {**values, "total": float(total.detach()), "confident": float(losses.metrics["confident"])}


def expected(case: Case, name: str, dtype: torch.dtype) -> np.ndarray:
    return case[f"{name}_f64" if dtype == torch.float64 else name]


def check_step(method: SimMatchV2, case: Case, dtype: torch.dtype, prefix: str = "", exact: float = 1e-10) -> None:
    """Compare losses, gradients and state after one step with the arrays `prefix...`."""
    near = {"abs": exact} if dtype == torch.float64 else {"rel": 1e-4, "abs": 1e-5}
    teacher, _ = teach(method, case, dtype, prefix)
    check_targets(method, teacher, case, dtype, prefix, near)
    method.zero_grad()
    views, values = step_and_losses(method, case, dtype, prefix)
    for name in (*LOSSES, "total"):
        close(np.array(values[name]), expected(case, f"{prefix}out_loss_{name}", dtype).reshape(()), **near)
    assert values["confident"] == pytest.approx(float(case[f"{prefix}out_mask"].mean()))
    scale = max(1.0, float(np.abs(case[f"{prefix}out_grad_strong_inputs"]).max()))
    near = {**near, "abs": near["abs"] * scale}
    strong = torch.stack([views[f"strong{i}"].grad for i in range(int(case["hp_num_strong"]))])
    close(strong, expected(case, f"{prefix}out_grad_strong_inputs", dtype), **near)
    close(views["labeled"].grad, expected(case, f"{prefix}out_grad_labeled_input", dtype), **near)
    student = method.student
    close(student.classifier.weight.grad, expected(case, f"{prefix}out_grad_fc_weight", dtype), **near)
    close(student.head[2].weight.grad, expected(case, f"{prefix}out_grad_head2_weight", dtype), **near)
    assert views["weak"].grad is None and all(p.grad is None for p in method.teacher.parameters())
    check_banks(banks(method), case, prefix)


def check_targets(
    method: SimMatchV2, teacher: simmatchv2.Targets, case: Case, dtype: torch.dtype, prefix: str, near: dict
) -> None:
    close(teacher.prob, expected(case, f"{prefix}out_prob_weak_aligned", dtype), **near)
    close(teacher.label, expected(case, f"{prefix}out_pseudo_label", dtype), **near)
    close(teacher.mask, case[f"{prefix}out_mask"])
    embedding = method.teacher(views_of(case, dtype, prefix)["weak"]).embedding.detach()
    found = simmatchv2.neighbours(embedding, method.labeled_bank.feature, method.cfg.topn)
    close(found.sort(1).values, case[f"{prefix}out_topn_index_sorted"])
    nodes = torch.cat([embedding[:, None], method.labeled_bank.feature[found]], 1)
    walk = simmatchv2.transition(nodes, method.cfg.temperature)
    close(walk.sum(2), np.ones(walk.shape[:2]), abs=1e-5)
    share = simmatchv2.first_row(walk, method.cfg.alpha)
    for ours, name in ((walk[:, 0], "transition"), (share, "propagation")):  # neighbours may stand in another order
        theirs = expected(case, f"{prefix}out_graph_{name}", dtype)[:, 0]
        close(ours[:, 0], theirs[:, 0], **near)
        close(ours[:, 1:].sort(1).values, np.sort(theirs[:, 1:], 1), **near)


def check_banks(state: Case, case: Case, prefix: str = "") -> None:
    for name, value in state.items():
        close(value, case[f"{prefix}out_{name}_after"], abs=0 if name == "ptr" else 1e-6)


@parametrize("simmatchv2_step")
@PRECISIONS
def test_one_step(case: Case, dtype: torch.dtype) -> None:
    check_step(method_of(case, dtype), case, dtype)


@parametrize("simmatchv2_fresh_bank")
@PRECISIONS
def test_steps_from_an_empty_bank(case: Case, dtype: torch.dtype) -> None:
    """The published running mean starts as a float32 number, which float64 steps keep."""
    method = method_of(case, dtype)
    steps = sorted({int(match[1]) for name in case if (match := re.match(r"step(\d+)_", name))})
    assert steps
    for number in steps:
        check_step(method, case, dtype, f"step{number}_", exact=1e-5)


def on_rank(number: int, case: Case, steps: int) -> list[dict]:
    method, found = method_of(case, torch.float32), []
    for step in range(steps):
        prefix = f"step{step}_rank{number}_"
        teacher, _ = teach(method, case, torch.float32, prefix)
        _, values = step_and_losses(method, case, torch.float32, prefix)
        found.append({"values": values, "state": banks(method), "targets": [x.numpy() for x in teacher[:3]]})
    return found


@parametrize("simmatchv2_dist2")
def test_processes(case: Case) -> None:
    steps = len({match[1] for name in case if (match := re.match(r"step(\d+)_out", name))})
    assert steps
    ranks = run_processes(int(case["hp_world_size"]), on_rank, case, steps)
    for number, results in enumerate(ranks):
        for step, result in enumerate(results):
            prefix = f"step{step}_rank{number}_"
            for name in (*LOSSES, "total"):
                expects = case[f"{prefix}out_loss_{name}"].reshape(())
                close(np.array(result["values"][name]), expects, rel=1e-4, abs=1e-5)
            for value, name in zip(result["targets"], ("prob_weak_aligned", "pseudo_label", "mask"), strict=True):
                close(value, case[f"{prefix}out_{name}"], rel=1e-4, abs=1e-5)
            check_banks(result["state"], case, f"step{step}_")
            for name, value in ranks[0][step]["state"].items():
                assert np.array_equal(result["state"][name], value), f"{name} differs between processes"


# ---- schedules, sampler, EMA


@parametrize("simmatchv2_schedules")
def test_learning_rate(case: Case) -> None:
    per_epoch, epochs = int(case["hp_iters_per_epoch"]), int(case["hp_epochs"])
    found = plan(epochs * per_epoch, per_epoch, int(case["hp_warmup_epochs"]) * per_epoch, float(case["hp_lr"]))
    close(np.array([found.lr(update) for update in range(found.total)]), case["lr_per_iteration"], rel=1e-12)


@parametrize("simmatchv2_schedules")
def test_ema_momentum(case: Case) -> None:
    names = [name for name in case if name.startswith("ema_momentum_per_iteration_base")]
    assert names
    for name in names:
        base, values = float(name.rpartition("base")[2].replace("p", ".")), case[name]
        rule, total = simmatchv2.teacher_momentum(base), len(values)
        found = [value_at(rule, update + 1, total, 1) for update in range(total)]
        close(np.array(found), values, rel=1e-12)


@parametrize("simmatchv2_schedules")
def test_labelled_sampler(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reference's permutations in place of its own, the order of the labelled stream is the reference's."""
    samples, ranks = int(case["hp_sampler_dataset_len"]), int(case["hp_sampler_replicas"])
    epochs = sorted({int(match[1]) for name in case if (match := re.match(r"sampler_epoch(\d+)_", name))})
    assert epochs
    for epoch in epochs:
        generator = torch.Generator().manual_seed(epoch)
        monkeypatch.setattr(order, "permutation", lambda n, *_, g=generator: torch.randperm(n, generator=g).numpy())
        count = ranks * int(case["hp_sampler_num_samples"])
        found = order.Order(samples, 0, "labeled").indices(epoch, np.arange(count))
        for number in range(ranks):
            assert np.array_equal(found[number::ranks], case[f"sampler_epoch{epoch}_rank{number}"])


@parametrize("simmatchv2_schedules")
@pytest.mark.parametrize("kind", ["plain", "eman"])
def test_ema(case: Case, kind: str) -> None:
    """Over a whole update of the method, whose teacher moves by the momentum that the arrays have."""
    width, dim = case[f"ema_{kind}_main_head.0.weight"].shape[0], case[f"ema_{kind}_main_head.2.weight"].shape[0]
    classes = len(case[f"ema_{kind}_main_fc.bias"])
    ema = {"kind": kind, "momentum": float(case["hp_ema_momentum"])}
    cfg = SimMatchV2Config(embed_dim=dim, feature_norm=False, topn=1, bank=2, ema=ema)
    streams = {"labeled": StreamInfo(classes, 1, torch.arange(classes)), "unlabeled": StreamInfo(9, 2)}

    def backbone(source: str | None = None) -> nn.Module:
        network = nn.Sequential()
        network.add_module("bn", nn.BatchNorm1d(width))
        network.num_features, network.input = width, None
        return network

    method = SimMatchV2(cfg, backbone, Info(0, 0, 1, classes, streams))
    for network, when in ((method.student, "main"), (method.teacher, "before")):
        network.load_state_dict({ours(k): torch.from_numpy(v) for k, v in ema_arrays(case, kind, when).items()})
    row = torch.rand(2, dim + 2 * classes)
    carry = {"index": torch.tensor([0]), "labeled": torch.rand(1, dim), "weak": row}
    far = make_step(plan(10**9), 0, 0, 0, 0)  # the rise of the momentum begins, too little to be seen
    method.after_step(far, carry)
    state = method.teacher.state_dict()
    for name, value in ema_arrays(case, kind, "after").items():
        close(state[ours(name)], value, rel=1e-6, abs=1e-6)


def ema_arrays(case: Case, kind: str, when: str) -> Case:
    prefix = f"ema_{kind}_{when}_"
    return {name.removeprefix(prefix): value for name, value in case.items() if name.startswith(prefix)}


def ours(name: str) -> str:
    return re.sub(r"^fc\.", "classifier.", name)
