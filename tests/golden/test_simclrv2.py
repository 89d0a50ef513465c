"""SimCLRv2 against arrays computed with the published code (TensorFlow) and in float64."""

from __future__ import annotations

import re

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Case, close, tensor
from processes import run_processes
from simclrv2_networks import block_of, head_of, kernel_of, pools
from torch import Tensor

from unlabeled.augment.blur import Blur, blur, default_taps
from unlabeled.augment.color import OPERATIONS, Chosen, Jitter, gray, jitter
from unlabeled.augment.geometry import central_boxes
from unlabeled.augment.resample import resample, resize_weights
from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.engine.optim.lars import LARS
from unlabeled.engine.plan import learning_rate
from unlabeled.methods import simclrv2
from unlabeled.methods.distil import distillation_loss
from unlabeled.ops.ema import ema_update
from unlabeled.ops.labels import known, known_cross_entropy

KINDS = (
    "simclrv2_ntxent",
    "simclrv2_ntxent_distributed",
    "simclrv2_lars",
    "simclrv2_lr_schedule",
    "simclrv2_projection_head",
    "simclrv2_momentum_memory",
    "simclrv2_sk_conv",
    "simclrv2_bottleneck",
    "simclrv2_pooling",
    "simclrv2_augment",
    "simclrv2_distillation",
)


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


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
    optim = Optim(name="lars", lr=LearningRate(base=float(case["base_lr"]), scaling=str(case["scaling"])))
    # the published code counts updates in its own way; the shape between them is what the product computes
    total, warmup = int(case["total_steps"]), int(case["warmup_steps"])
    curve = learning_rate(optim, int(case["batch_size"]), total, warmup, per_epoch=1)
    rates = [curve.at(int(step)) for step in case["steps"]]
    close(np.array(rates), case["learning_rate_float32_reference"], abs=2e-6 * curve.start)


# ---- projection head


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


# ---- backbone


@parametrize("simclrv2_sk_conv")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_selective_kernel(case: Case, mode: str) -> None:
    check_map_and_gradient(kernel_of(case), case, mode)


@parametrize("simclrv2_bottleneck")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_bottleneck(case: Case, mode: str) -> None:
    check_map_and_gradient(block_of(case), case, mode)


def check_map_and_gradient(module: torch.nn.Module, case: Case, mode: str) -> None:
    """In float64: BatchNorm over the few pooled vectors of a case magnifies rounding, and the arrays hold their own."""
    x = tensor(case["input_nchw"]).requires_grad_()
    out = module.double().train(mode == "train")(x)
    close(out, case[f"output_{mode}_nchw"], rel=1e-5, abs=1e-5)
    out.square().sum().div(2).backward()
    expected = case[f"grad_input_of_half_sum_squares_{mode}_nchw"]
    close(x.grad, expected, rel=1e-4, abs=1e-4 * max(1.0, np.abs(expected).max()))


@parametrize("simclrv2_pooling")
def test_pooling(case: Case) -> None:
    x, (max_pool, shortcut1, shortcut2) = tensor(case["input_nchw"], torch.float32), pools()
    close(max_pool(x), case["maxpool3x3_stride2_same_nchw"])
    close(shortcut1(x), case["avgpool2x2_stride1_same_nchw"], abs=1e-6)
    close(shortcut2(x), case["fixedpad_avgpool2x2_stride2_valid_nchw"], abs=1e-6)


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


# ---- augmentation


def image(case: Case, name: str = "image_chw") -> Tensor:
    return torch.from_numpy(case[name]).float()[None]


def numbered(case: Case, stem: str) -> list[str]:
    """Prefixes `stem`, `stem0`, `stem1`, ... of the parts that the case holds."""
    return sorted({match[1] for name in case if (match := re.match(rf"({stem}\d*)_", name))})


def steps(case: Case, order: list[str]) -> Jitter:
    """Jitter with the case's factors; operations that are not in `order` come last and are neutral."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    names = {
        "brightness": "brightness_factor",
        "contrast": "contrast_factor",
        "saturation": "saturation_factor",
        "hue": "hue_delta",
    }
    amounts = {op: float(case[names[op]]) if op in order else neutral[op] for op in OPERATIONS}
    rest = [op for op in OPERATIONS if op not in order]
    return Jitter(
        torch.ones(1, dtype=torch.bool),
        torch.tensor([[OPERATIONS.index(op) for op in [*order, *rest]]]),
        *(torch.tensor([amounts[op]], dtype=torch.float64) for op in OPERATIONS),
    )


def difference(ours: Tensor, expected: np.ndarray) -> float:
    return (ours[0].double() - torch.from_numpy(expected).double()).abs().max().item()


@parametrize("simclrv2_augment")
def test_single_operations(case: Case) -> None:
    present = [op for op in OPERATIONS if f"{op}_clipped_chw" in case]
    if not present:
        pytest.skip("the case has no single colour operation")
    for op in present:
        ours = jitter(image(case), steps(case, [op]), "simclr")
        assert difference(ours, case[f"{op}_clipped_chw"]) <= (2e-6 if op in ("hue", "saturation") else 1e-6), op


@parametrize("simclrv2_augment")
def test_jitter_in_order(case: Case) -> None:
    if "jitter_order" not in case:
        pytest.skip("the case has no jitter")
    ours = jitter(image(case), steps(case, [str(op) for op in case["jitter_order"]]), "simclr")
    assert difference(ours, case["jitter_in_that_order_chw"]) <= 2e-6


@parametrize("simclrv2_augment")
def test_grayscale(case: Case) -> None:
    if "grayscale_chw" not in case:
        pytest.skip("the case has no grayscale")
    assert difference(gray(image(case), Chosen(torch.ones(1, dtype=torch.bool))), case["grayscale_chw"]) <= 1e-6


@parametrize("simclrv2_augment")
def test_blurs(case: Case) -> None:
    if not numbered(case, "blur"):
        pytest.skip("the case has no blur")
    for name in numbered(case, "blur"):
        taps, sigma = int(case[f"{name}_taps"]), case[f"{name}_sigma"].astype(np.float64).reshape(1)
        assert taps == default_taps(10 * int(case[f"{name}_kernel_size_argument"]))
        params = Blur(torch.ones(1, dtype=torch.bool), torch.from_numpy(sigma))
        assert difference(blur(image(case), params, taps=taps, padding="zeros"), case[f"{name}_chw"]) <= 1e-6, name


@parametrize("simclrv2_augment")
def test_centre_crops(case: Case) -> None:
    """The box is EvalCrop's; the published resize has no antialiasing."""
    if not numbered(case, "centercrop"):
        pytest.skip("the case has no centre crop")
    for name in numbered(case, "centercrop"):
        x, size = image(case, f"{name}_image_chw"), int(case[f"{name}_size"])
        box = central_boxes(np.array([x.shape[2:]]), float(case[f"{name}_proportion"]))
        expected = [case[f"{name}_{key}"] for key in ("offset_top", "offset_left", "crop_height", "crop_width")]
        assert box[0, :4].tolist() == [float(value) for value in expected]
        place = torch.from_numpy(box).float()
        rows = resize_weights(place[:, 0], place[:, 2], size, x.shape[2], "bicubic", antialias=False)
        columns = resize_weights(place[:, 1], place[:, 3], size, x.shape[3], "bicubic", antialias=False)
        ours = resample(x, rows, columns).permute(0, 2, 1, 3)
        assert difference(ours, case[f"{name}_bicubic_unclipped_chw"]) <= 5e-4, name


# ---- distillation


@parametrize("simclrv2_distillation")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distillation(case: Case, dtype: torch.dtype) -> None:
    student = tensor(case["student_logits"], dtype).requires_grad_()
    teacher, temperature = tensor(case["teacher_logits"], dtype), float(case["temperature"])
    scaled = distillation_loss(student, teacher, temperature, scale_by_t2=True)
    plain = distillation_loss(student, teacher, temperature, scale_by_t2=False)
    tolerance = {"rel": 1e-10, "abs": 1e-10} if dtype == torch.float64 else {"rel": 1e-6, "abs": 1e-6}
    close(scaled, case["kd_loss_with_T2_float64"], **tolerance)
    close(scaled, case["kd_loss_with_T2_float32_reference"], rel=1e-6)
    close(plain, case["kd_loss_paper_no_T2_float64"], **tolerance)
    rows = zip(student.split(1), teacher.split(1), strict=True)
    each = [distillation_loss(s, t, temperature, scale_by_t2=False) for s, t in rows]
    close(torch.stack(each), case["kd_per_example_no_T2_float64"], **tolerance)
    labels = torch.full((len(student),), -1)
    labels[: len(case["labels_first_rows"])] = torch.from_numpy(case["labels_first_rows"])
    count, alpha = known(labels), float(case["alpha"])
    label_loss = known_cross_entropy(student, labels, count)
    close(label_loss, case["label_ce_mean_float64"], **tolerance)
    close((1 - alpha) * label_loss + alpha * plain, case["combined_mean_form_no_T2_float64"], **tolerance)
    summed = (1 - alpha) * int(count) * label_loss + alpha * len(student) * plain
    close(summed, case["combined_sum_form_no_T2_float64"], **tolerance)
    if dtype == torch.float64:
        (grad,) = torch.autograd.grad(scaled, student)
        close(grad, case["grad_student_kd_with_T2_float64"], abs=1e-10)
