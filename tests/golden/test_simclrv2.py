"""SimCLRv2 against arrays computed with the published code (TensorFlow) and in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from golden_files import Case, cases
from processes import run_processes

from unlabeled.config.recipe import LearningRate
from unlabeled.engine.lars import LARS
from unlabeled.engine.schedule import warmup_cosine
from unlabeled.methods import simclrv2
from unlabeled.methods.simclrv2_config import Head
from unlabeled.ops.ema import ema_update

LATER = ("simclrv2_sk_conv", "simclrv2_bottleneck", "simclrv2_pooling", "simclrv2_augment", "simclrv2_distillation")
KINDS = (
    "simclrv2_ntxent",
    "simclrv2_ntxent_distributed",
    "simclrv2_lars",
    "simclrv2_lr_schedule",
    "simclrv2_projection_head",
    "simclrv2_momentum_memory",
    *LATER,
)


def parametrize(kind: str):
    found = cases(kind, KINDS)
    return pytest.mark.parametrize("case", [case for _, case in found], ids=[name for name, _ in found])


def close(actual, expected, *, rel=0.0, abs=0.0) -> None:
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=rel, atol=abs)


def tensor(array: np.ndarray, dtype=torch.float64) -> torch.Tensor:
    return torch.as_tensor(array).to(dtype)


# ---- NT-Xent


def contrast(case: Case, dtype: torch.dtype):
    hidden = [tensor(case[f"hidden_view{v}"], dtype).requires_grad_() for v in (1, 2)]
    unit = [simclrv2.normalize(h) for h in hidden] if case["hidden_norm"] else hidden
    return hidden, simclrv2.nt_xent(*unit, float(case["temperature"]))


@parametrize("simclrv2_ntxent")
def test_ntxent_float64(case: Case) -> None:
    hidden, result = contrast(case, torch.float64)
    close(result.loss, case["loss_sum_float64"], rel=1e-10, abs=1e-10)
    close(result.loss / 2, case["loss_mean_float64"], rel=1e-10, abs=1e-10)
    for v, (per_image, h) in enumerate(zip((result.view1, result.view2), hidden, strict=True), 1):
        if f"per_image_loss_view{v}_float64" in case:
            close(per_image, case[f"per_image_loss_view{v}_float64"], rel=1e-10, abs=1e-10)
        if f"grad_loss_sum_view{v}_float64" in case:
            grad = torch.autograd.grad(result.loss, h, retain_graph=True)[0]
            expected = case[f"grad_loss_sum_view{v}_float64"]
            close(grad, expected, rel=1e-10, abs=1e-10 * max(1.0, np.abs(expected).max()))


@parametrize("simclrv2_ntxent")
def test_ntxent_float32(case: Case) -> None:
    _, result = contrast(case, torch.float32)
    close(result.loss, case["loss_sum_float32_reference"], rel=2e-6, abs=2e-6)
    if "logits_view1_view2_float32_reference" in case:
        expected = case["logits_view1_view2_float32_reference"]
        close(result.logits, expected, abs=2e-6 * max(1.0, np.abs(expected).max()))
    metrics = simclrv2.contrast_metrics(result.logits)
    for name in ("contrast_accuracy", "contrast_entropy"):
        if name in case:
            close(metrics[name], case[name], rel=2e-6, abs=2e-6)


def rank_contrast(rank: int, case: Case) -> dict[str, np.ndarray]:
    """What rank `rank` computes of the distributed case, in its own process; DDP's mean is applied by dividing."""
    hidden = tensor(case["hidden_per_rank"][rank]).requires_grad_()
    n = len(hidden) // 2
    result = simclrv2.nt_xent(*(simclrv2.normalize(h) for h in hidden.split(n)), float(case["temperature"]))
    result.loss.backward()
    return {
        "loss": result.loss.detach().numpy(),
        "grad": hidden.grad.numpy() / len(case["hidden_per_rank"]),
        "own": simclrv2.own_columns(n, hidden.device).numpy(),
        "logits": result.logits.detach().numpy(),
    }


@parametrize("simclrv2_ntxent_distributed")
def test_ntxent_over_processes(case: Case) -> None:
    ranks = int(case["num_ranks"])
    got = run_processes(ranks, rank_contrast, case)
    close(np.mean([g["loss"] for g in got]), case["loss_sum_single_process_float64"], abs=1e-6)
    for r, g in enumerate(got):
        close(g["loss"], case["loss_sum_per_rank_float32_reference"][r], abs=1e-6)
        close(g["grad"], case["grad_of_mean_loss_per_rank_float64"][r], abs=1e-6)
        close(g["grad"], case["grad_of_mean_loss_per_rank_float32_reference"][r], abs=1e-6)
        close(g["own"], case["label_index_per_rank"][r])
        scale = np.abs(case["logits_view1_view2_per_rank_float32_reference"]).max()
        close(g["logits"], case["logits_view1_view2_per_rank_float32_reference"][r], abs=1e-6 * max(1, scale))
        wrong = case["wrong_grad_if_gather_blocks_gradient_float64"][r]
        assert np.abs(g["grad"] - wrong).max() > 1e-4, "the gather blocks the gradient"


# ---- LARS


@parametrize("simclrv2_lars")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_lars(case: Case, dtype: torch.dtype) -> None:
    names = [m[1] for key in case if (m := re.fullmatch(r"(.+)__param_step0", key))]
    rates = case["learning_rates"]
    excluded = {"bn_gamma", "bias", "head"}
    classic = bool(case["classic_momentum"])
    params = {name: torch.nn.Parameter(tensor(case[f"{name}__param_step0"], dtype)) for name in names}
    optimizer = LARS(
        [
            {
                "params": [p],
                "adapt": name not in excluded,
                "weight_decay": 0.0 if name in excluded else float(case["weight_decay"]),
            }
            for name, p in params.items()
        ],
        momentum=float(case["momentum"]),
        nesterov=bool(case["nesterov"]),
        eta=float(case["eta"]),
        lr_in_momentum=classic,
        norm="decayed" if classic else "update",
    )
    tolerance = {"rel": 1e-6, "abs": 1e-9} if dtype == torch.float64 else {"rel": 1e-5, "abs": 1e-6}
    for step, lr in enumerate(rates, 1):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for name, p in params.items():
            p.grad = tensor(case[f"{name}__grad_step{step}"], dtype)
        optimizer.step()
        for name, p in params.items():
            close(p, case[f"{name}__param_after_step{step}_float64"], **tolerance)
    for name, p in params.items():
        buffer = optimizer.state[p]["momentum_buffer"]
        if f"{name}__momentum_buffer_final_float64" in case:
            close(buffer, case[f"{name}__momentum_buffer_final_float64"], **tolerance)
        if dtype == torch.float32:
            close(p, case[f"{name}__param_after_step{len(rates)}_float32_reference"], **tolerance)


# ---- learning rate


@parametrize("simclrv2_lr_schedule")
def test_learning_rate(case: Case) -> None:
    rule = LearningRate(base=float(case["base_lr"]), scaling=str(case["scaling"]))
    peak = rule.peak(int(case["batch_size"]))
    # the published code counts updates in its own way; the shape between them is what the product computes
    total, warmup = int(case["total_steps"]), int(case["warmup_steps"])
    rates = [warmup_cosine(int(step), peak, warmup, total) for step in case["steps"]]
    close(np.array(rates), case["learning_rate_float32_reference"], abs=2e-6 * peak)


# ---- projection head


def head_of(case: Case) -> simclrv2.ProjectionHead:
    layers = 1 + max(int(m[1]) for key in case if (m := re.match(r"layer(\d+)_weight", key)))
    width, out = case["input"].shape[1], case[f"layer{layers - 1}_weight_out_in"].shape[0]
    head = simclrv2.ProjectionHead(width, Head(layers=layers, out_dim=out))
    for j, (linear, norm, _) in enumerate(head.layers):
        assert (norm.bias is not None) == bool(case[f"layer{j}_bn_has_beta"])
        close(np.array([norm.eps, norm.momentum]), [case["batch_norm_eps"], 1 - case["batch_norm_decay"]], rel=1e-6)
        state = {
            "weight": case[f"layer{j}_bn_gamma"],
            "running_mean": case[f"layer{j}_bn_running_mean_before"],
            "running_var": case[f"layer{j}_bn_running_var_before"],
            "num_batches_tracked": np.int64(0),
        }
        if norm.bias is not None:
            state["bias"] = case[f"layer{j}_bn_beta"]
        norm.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
        linear.load_state_dict({"weight": torch.as_tensor(case[f"layer{j}_weight_out_in"])})
    return head


@parametrize("simclrv2_projection_head")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_projection_head(case: Case, mode: str) -> None:
    head = head_of(case)
    layers = len(head.layers)
    for tap in range(layers + 1):
        close(
            head_of(case).train(mode == "train")(tensor(case["input"], torch.float32), tap),
            case[f"selector{tap}_{mode}"],
            rel=1e-5,
            abs=1e-5,
        )
    x = tensor(case["input"], torch.float32).requires_grad_()
    out = head.train(mode == "train")(x)
    close(out, case[f"output_{mode}"], rel=1e-5, abs=1e-5)
    (out.square().flatten() * torch.arange(out.numel())).sum().div(100).backward()
    expected = case[f"grad_input_{mode}"]
    close(x.grad, expected, rel=1e-4, abs=1e-4 * max(1.0, np.abs(expected).max()))
    if mode == "train":
        n = len(x)
        for j, (_, norm, _) in enumerate(head.layers):
            close(norm.running_mean, case[f"layer{j}_bn_running_mean_after"], rel=1e-5, abs=1e-5)
            # torch keeps the unbiased variance, the reference the biased one
            old = case[f"layer{j}_bn_running_var_before"] * case["batch_norm_decay"]
            biased = old + (norm.running_var.numpy() - old) * (n - 1) / n
            close(biased, case[f"layer{j}_bn_running_var_after"], rel=1e-5, abs=1e-5)


# ---- momentum memory


@parametrize("simclrv2_momentum_memory")
def test_momentum_memory(case: Case) -> None:
    size, dim = case["queue_before_unit_rows"].shape
    queue = simclrv2.KeyQueue(size, dim).double()
    queue.keys.copy_(tensor(case["queue_before_unit_rows"]))
    queue.pointer.fill_(int(case["queue_pointer_before"]))
    queue.written.fill_(size)
    queries = [tensor(case[f"query_view{v}"]).requires_grad_() for v in (1, 2)]
    units = [simclrv2.normalize(q) for q in queries]
    keys = [simclrv2.normalize(tensor(case[f"key_view{v}"])) for v in (1, 2)]
    temperature = float(case["temperature"])
    result = simclrv2.memory_contrast(*units, *keys, queue, temperature)
    close(result.loss, case["loss_sum"], abs=1e-10)
    close(result.view1, case["per_image_loss_query1"], abs=1e-10)
    close(result.view2, case["per_image_loss_query2"], abs=1e-10)
    logits = torch.cat([result.logits, queue.logits(units[0], temperature)], 1)
    close(logits, case["logits_query1"], abs=1e-10)
    result.loss.backward()
    for v, query in enumerate(queries, 1):
        close(query.grad, case[f"grad_query_view{v}"], abs=1e-10)
    queue.push(torch.cat(keys))
    close(queue.keys, case["queue_after"], abs=1e-10)
    assert int(queue.pointer) == int(case["queue_pointer_after"])


@parametrize("simclrv2_momentum_memory")
def test_ema(case: Case) -> None:
    student, teacher = torch.nn.ParameterList(), torch.nn.ParameterList()
    student.append(tensor(case["ema_online_param"]))
    teacher.append(tensor(case["ema_momentum_param_before"]))
    ema_update(teacher, student, float(case["ema_decay"]))
    close(teacher[0], case["ema_momentum_param_after"], abs=1e-10)
