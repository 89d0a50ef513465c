"""What reaches the optimizer in an update: rates, decays, options and frozen groups, each as a step in closed form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import run_processes
from tiny import Tiny, differing, snapshot, tiny_recipe, tiny_run
from torch import Tensor, nn

from unlabeled.config.base.optim import Optim
from unlabeled.engine.optim.optimizer import (
    build_optimizer,
    clip_and_norm,
    drop_frozen_gradients,
    set_learning_rate,
    set_weight_decay,
)
from unlabeled.engine.plan import describe
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.methods.base import Group, Method

LR, DECAYS = 0.1, (0.2, 0.05, 0.4)
CURVE = "optim.weight_decay={start: 0.2, end: 0.01, shape: linear}"


class Pair(Method):
    """Two parameters of which each may be a group of its own, in float64."""

    def __init__(self, *groups: Group) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(2))
        self.groups = list(groups)

    def param_groups(self) -> list[Group]:
        return self.groups or super().param_groups()


def gradients(updates: int) -> Iterator[dict[str, Tensor]]:
    """Yield a gradient per parameter and update."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        yield {name: torch.randn(4, 3, dtype=torch.float64, generator=generator) for name in "ab"}


def run(method: Pair, name: str, decays: tuple[float, ...] = (), epochs: float = 1, clip: float | None = None,
        **options) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Do the updates of `gradients`; weights before and after each, and gradient norms. decays: a curve's values."""
    options.setdefault("exclude_decay", [])
    if name == "lars":
        options.setdefault("exclude_lars", [])
    if decays:
        options["weight_decay"] = {"start": 9.0, "shape": "constant"}
    optimizer = build_optimizer(method, Optim(name=name, lr={"base": LR}, **options))
    weights, norms = [{n: p.detach().clone() for n, p in method.named_parameters()}], []
    for update, grads in enumerate(gradients(3)):
        set_learning_rate(optimizer, LR, update / epochs)
        if decays:
            set_weight_decay(optimizer, decays[update])
        for key, p in method.named_parameters():
            p.grad = grads[key].clone()
        drop_frozen_gradients(optimizer, update / epochs)
        norms.append(float(clip_and_norm(optimizer, clip)))
        optimizer.step()
        weights.append({n: p.detach().clone() for n, p in method.named_parameters()})
    method.optimizer = optimizer
    return weights, norms


def adamw(p: Tensor, grads: list[Tensor], decays: tuple[float, ...], betas: tuple[float, float]) -> Tensor:
    """Follow Loshchilov and Hutter, arXiv 1711.05101 algorithm 2, without a schedule of its own."""
    m = v = torch.zeros_like(p)
    for t, (g, decay) in enumerate(zip(grads, decays, strict=True), 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = p - LR * decay * p - LR * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + 1e-8)
    return p


def adamp(p: Tensor, grads: list[Tensor], decays: tuple[float, ...], betas: tuple[float, float], ratio: float,
          nesterov: bool) -> Tensor:
    """Follow Heo et al., arXiv 2006.08217 algorithm 2, where every row is scale-invariant; eps is 0.5."""
    m = v = torch.zeros_like(p)
    for t, (g, decay) in enumerate(zip(grads, decays, strict=True), 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        mean = betas[0] * m + (1 - betas[0]) * g if nesterov else m
        u = mean / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)).sqrt() + 0.5)
        unit = p / (p.norm(dim=1, keepdim=True) + 0.5)
        p = p - LR * decay * ratio * p - LR * (u - unit * (unit * u).sum(1, keepdim=True))
    return p


def momentum_sgd(p: Tensor, grads: list[Tensor], decays: tuple[float, ...], momentum: float, nesterov: bool) -> Tensor:
    v = torch.zeros_like(p)
    for g, decay in zip(grads, decays, strict=True):
        g = g + decay * p
        v = momentum * v + g
        p = p - LR * (g + momentum * v if nesterov else v)
    return p


def lars(p: Tensor, grads: list[Tensor], decays: tuple[float, ...], momentum: float, nesterov: bool,
         eta: float = 0.001, lr_in_momentum: bool = True, norm: str = "decayed", eps: float = 0.0) -> Tensor:
    v = torch.zeros_like(p)
    for g, decay in zip(grads, decays, strict=True):
        plain, g = g, g + decay * p
        below = plain.norm() + decay * p.norm() if norm == "sum" else g.norm()
        u = g if norm == "update" else g * eta * p.norm() / (below + eps)
        u = LR * u if lr_in_momentum else u
        v = momentum * v + u
        u = u + momentum * v if nesterov else v
        u = u * eta * p.norm() / (u.norm() + eps) if norm == "update" else u
        p = p - (u if lr_in_momentum else LR * u)
    return p


# optimizer, options -> what they do in closed form; each option differs from its default
CLOSED = {
    "sgd": ("sgd", {"momentum": 0.7}, lambda *x: momentum_sgd(*x, 0.7, False)),
    "sgd-nesterov": ("sgd", {"momentum": 0.7, "nesterov": True}, lambda *x: momentum_sgd(*x, 0.7, True)),
    "adamw": ("adamw", {"betas": (0.8, 0.7)}, lambda *x: adamw(*x, (0.8, 0.7))),
    "adamp-plain": ("adamp", {"betas": (0.8, 0.7), "adamp": {"delta": 0}}, lambda *x: adamw(*x, (0.8, 0.7))),
    "adamp": ("adamp", {"betas": (0.8, 0.7), "adamp": {"delta": 9, "wd_ratio": 0.3, "eps": 0.5}},
              lambda *x: adamp(*x, (0.8, 0.7), 0.3, False)),
    "adamp-nesterov": ("adamp", {"nesterov": True, "adamp": {"delta": 9, "eps": 0.5}},
                       lambda *x: adamp(*x, (0.9, 0.999), 0.1, True)),
    "lars": ("lars", {"momentum": 0.7, "lars": {"eta": 0.02}}, lambda *x: lars(*x, 0.7, False, 0.02)),
    "lars-nesterov": ("lars", {"nesterov": True}, lambda *x: lars(*x, 0.9, True)),
    "lars-outside": ("lars", {"lars": {"eta": 0.02, "lr_in_momentum": False, "norm": "sum", "eps": 0.3}},
                     lambda *x: lars(*x, 0.9, False, 0.02, False, "sum", 0.3)),
    "lars-update": ("lars", {"lars": {"eta": 0.02, "lr_in_momentum": False, "norm": "update", "eps": 0.3}},
                    lambda *x: lars(*x, 0.9, False, 0.02, False, "update", 0.3)),
    "lars-off": ("lars", {"exclude_lars": ["*"]}, lambda *x: momentum_sgd(*x, 0.9, False)),
}  # fmt: skip
every_optimizer = pytest.mark.parametrize(("name", "options", "closed"), CLOSED.values(), ids=CLOSED)


@every_optimizer
@pytest.mark.parametrize("curve", [False, True], ids=["number", "curve"])
def test_options_and_decays_of_every_optimizer_in_closed_form(name: str, options: dict, closed, curve: bool) -> None:
    own = Group(("b",), decay=0.3)
    weights, _ = run(Pair(Group(("a",)), own), name, DECAYS if curve else (), weight_decay=0.25, **options)
    grads = list(gradients(3))
    for key, decays in (("a", DECAYS if curve else (0.25,) * 3), ("b", (0.3,) * 3)):
        expected = closed(weights[0][key], [g[key] for g in grads], decays)
        torch.testing.assert_close(weights[3][key], expected, rtol=1e-10, atol=1e-12)


@every_optimizer
@pytest.mark.parametrize("curve", [False, True], ids=["number", "curve"])
def test_what_is_excluded_and_a_groups_own_0_are_not_decayed(name: str, options: dict, closed, curve: bool) -> None:
    method = Pair(Group(("a",)), Group(("b",), decay=0.0))
    weights, _ = run(method, name, DECAYS if curve else (), weight_decay=0.25, exclude_decay=["a"], **options)
    for key in "ab":
        expected = closed(weights[0][key], [g[key] for g in gradients(3)], (0.0,) * 3)
        torch.testing.assert_close(weights[3][key], expected, rtol=1e-10, atol=1e-12)


# ---- frozen groups


@every_optimizer
def test_a_group_frozen_by_gradient_stays_and_then_starts_afresh(name: str, options: dict, closed) -> None:
    method = Pair(Group(("a",)), Group(("b",), frozen="grad", frozen_epochs=1))
    weights, norms = run(method, name, DECAYS, epochs=2, clip=1e9, **options)  # two updates are an epoch
    grads = list(gradients(3))
    assert torch.equal(weights[0]["b"], weights[1]["b"]) and torch.equal(weights[0]["b"], weights[2]["b"])
    expected = closed(weights[0]["b"], [grads[2]["b"]], DECAYS[2:])
    torch.testing.assert_close(weights[3]["b"], expected, rtol=1e-10, atol=1e-12)
    expected = closed(weights[0]["a"], [g["a"] for g in grads], DECAYS)
    torch.testing.assert_close(weights[3]["a"], expected, rtol=1e-10, atol=1e-12)
    joint = torch.cat([grads[2]["a"], grads[2]["b"]]).norm()
    assert norms == pytest.approx([float(grads[0]["a"].norm()), float(grads[1]["a"].norm()), float(joint)])


def test_a_frozen_gradient_does_not_share_in_the_clipping() -> None:
    frozen = run(Pair(Group(("a",)), Group(("b",), frozen="grad", frozen_epochs=9)), "sgd", clip=0.5)[0]
    for key, moved in (("a", 0.5 * LR), ("b", 0.0)):
        assert float((frozen[1][key] - frozen[0][key]).norm()) == pytest.approx(moved, rel=1e-5)


def test_the_optimizer_has_no_moments_of_dropped_gradients_but_of_those_at_rate_0() -> None:
    for frozen, count in (("grad", 0), ("lr", 3)):
        method = Pair(Group(("a",)), Group(("b",), frozen=frozen, frozen_epochs=9))
        weights, _ = run(method, "adamw", DECAYS)
        assert torch.equal(weights[0]["b"], weights[3]["b"])
        state = method.optimizer.state[method.b]
        assert len(state) == count and all(x.any() for x in state.values())


def test_groups_that_drop_all_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="Pair drop all gradients"):
        run(Pair(Group(("a", "b"), frozen="grad", frozen_epochs=0.5)), "sgd")


# ---- whole updates


def freeze_classifier(method: Method) -> None:
    names = [name for name, p in method.named_parameters() if p.requires_grad]
    last = tuple(name for name in names if name.startswith("classifier.linear."))
    rest = tuple(name for name in names if name not in last)
    method.param_groups = lambda: [Group(rest, lr_mult=0.5), Group(last, frozen="grad", frozen_epochs=0.04)]


def frozen_run(*overrides: str) -> Tiny:
    """Make a run of 59 updates an epoch whose classifier is frozen for 3 of them, with a decay that falls."""
    options = ["optim={name: adamw, lr: {base: 0.01}, warmup_epochs: 0.04}", CURVE, "train.channels_last=false"]
    tiny = tiny_run(tiny_recipe("finetune", "plain", [*options, *overrides]))
    freeze_classifier(tiny.updater.method)
    return Tiny(type(tiny.updater)(tiny.updater.method, tiny.updater.recipe, tiny.updater.plan,
                                   tiny.updater.accelerator), tiny.streams)  # fmt: skip


def test_every_group_has_the_rate_and_the_decay_of_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = frozen_run()
    updater, plan, seen = tiny.updater, tiny.updater.plan, []
    step = updater.optimizer.step
    monkeypatch.setattr(updater.optimizer, "step", lambda: (seen.append([
        (g["lr"], g["weight_decay"], g["follows_decay"], g["lr_mult"], g["params"][0].grad is None)
        for g in updater.optimizer.param_groups
    ]), step()))
    steps = []
    forward = updater.method.forward
    monkeypatch.setattr(updater.method, "forward", lambda views, step: (steps.append(step), forward(views, step))[1])
    tiny.train(0, 6)
    warmup = int(0.04 * plan.updates_per_epoch)
    assert warmup == 2 and plan.horizon == plan.total == 6
    rates = [0.01 * n for n in (0, 0.5, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5)]  # half a cosine over 4 updates
    assert [step.lr for step in steps] == pytest.approx(rates)
    assert {step.updates_per_epoch for step in steps} == {plan.updates_per_epoch}
    for update, groups in enumerate(seen):
        assert {follows for _, _, follows, _, _ in groups} == {True, False}
        for lr, decay, follows, factor, dropped in groups:
            assert lr == pytest.approx(rates[update] * factor)
            assert decay == pytest.approx(0.2 - update / 6 * 0.19 if follows else 0.0)
            assert dropped == (factor == 1 and update / plan.updates_per_epoch < 0.04)


def test_a_resume_amid_curves_and_a_frozen_group_is_bit_for_bit() -> None:
    more = ["optim.clip=1.0"]
    whole = frozen_run(*more)
    losses = whole.train(0, 6)
    for at in (2, 4):  # while the classifier is frozen, and after
        first, second = frozen_run(*more), frozen_run(*more)
        first.train(0, at)
        second.updater.method.load_state_dict(first.updater.method.state_dict())
        second.updater.optimizer.load_state_dict(first.updater.optimizer.state_dict())
        assert second.train(at, 6) == losses[at:]
        assert not differing(snapshot(whole), snapshot(second))


def test_the_state_of_an_optimizer_of_earlier_versions_goes_on() -> None:
    """Its groups do not say whether they follow a curve, nor how they are frozen: there was one way of each."""
    recipe = tiny_recipe("rotnet", "all")
    whole, first, second = (tiny_run(recipe) for _ in range(3))
    losses = whole.train(0, 4)
    first.train(0, 2)
    state = first.updater.optimizer.state_dict()
    for group in state["param_groups"]:
        del group["follows_decay"], group["frozen"]
    second.updater.method.load_state_dict(first.updater.method.state_dict())
    second.updater.optimizer.load_state_dict(state)
    assert second.train(2, 4) == losses[2:]


def on_rank(number: int) -> dict[str, Tensor]:
    tiny = frozen_run()
    tiny.train(0, 4)
    return {name: x.clone() for name, x in snapshot(tiny).items()}


def test_frozen_groups_on_two_processes_are_those_on_one() -> None:
    one, two = on_rank(0), run_processes(2, on_rank)
    assert not differing(two[0], two[1])
    for name, value in one.items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-3, atol=1e-5)


def test_a_scaler_does_not_look_at_dropped_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 an overflow there would else skip the step that the update is counted for."""
    tiny = frozen_run()
    updater, before = tiny.updater, snapshot(tiny)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monkeypatch.setattr(updater.accelerator, "scaler", scaler)
    last = updater.method.classifier.linear.weight
    last.register_hook(lambda grad: grad * float("inf"))
    tiny.train(2, 3)
    assert scaler.get_scale() == 4.0 and differing(before, snapshot(tiny))
    assert torch.equal(last, before["classifier.linear.weight"])


# ---- what is said of them


def test_the_plan_names_every_curve() -> None:
    memory = "method.memory={size: 120, decay: {table: [[1, 0.9], [2, 0.99]]}}"
    tiny = tiny_run(tiny_recipe("simclrv2", "plain", [CURVE, memory,
        "method.temperature={start: 0.07, shape: constant, warmup_epochs: 0.04, warmup_start: 0.04}"]))  # fmt: skip
    assert describe(tiny.updater.plan, tiny.updater.recipe)[2:] == [
        "method.temperature 0.07 after 2 warm-up updates from 0.04, constant over 6",
        "method.memory.decay 0.9 before epoch 1, 0.99 before epoch 2",
        "optim.weight_decay 0.2 after 0 warm-up updates, linear to 0.01 over 6",
    ]


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    rule = "method.temperature={start: 0.07, end: 0.1, warmup_epochs: 1, warmup_start: 0.04}"
    with pytest.raises(UserError, match=r"method.temperature.warmup_epochs 1 are \d+ updates, but the run has only 6"):
        tiny_run(tiny_recipe("simclrv2", "plain", [rule]))


def test_a_curve_of_the_decay_is_logged(tmp_path: Path) -> None:
    train(tiny_recipe("rotnet", "all", [CURVE, "train.log_every=1"]), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["weight_decay"] for line in lines] == pytest.approx([0.2 - k / 6 * 0.19 for k in range(6)])
