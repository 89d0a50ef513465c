"""POA against arrays computed with the published code."""

from __future__ import annotations

import re
from collections.abc import Iterable

import golden_files
import numpy as np
import poa_backbones
import pytest
import torch
from golden_files import Case, close, tensor
from torch import nn

from unlabeled.backbones.elastic.sizes import Grid, Size, steps
from unlabeled.backbones.elastic.vit import ElasticViT
from unlabeled.config.read import read_recipe
from unlabeled.engine.optim.optimizer import build_optimizer
from unlabeled.methods.base import Info, Step, StreamInfo
from unlabeled.methods.poa.config import POAConfig
from unlabeled.methods.poa.losses import cross_entropy, koleo, local_cross_entropy, patch_loss, same_view_loss
from unlabeled.methods.poa.method import POA
from unlabeled.methods.poa.networks import Head, Logits
from unlabeled.methods.poa.targets import Centering, Targets, by_sinkhorn
from unlabeled.ops.curves import Curve
from unlabeled.ops.random import generator

KINDS = ("poa_head", "poa_losses", "poa_total_loss", "poa_schedules", "poa_vit_block", "poa_vit_model",
         "poa_resnet_block", "poa_resnet_model", "poa_swin_stage")
DTYPES = pytest.mark.parametrize(("dtype", "suffix"), [(torch.float64, "_f64"), (torch.float32, "")], ids=str)
EMPTY = torch.zeros(0)


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


def agree(actual: torch.Tensor, case: Case, name: str, dtype: torch.dtype, *, float32_inside: bool = False) -> None:
    """Compare with the array of that type, within what README-poa.md allows.

    float32_inside: the published code computes a part of it in float32, whatever the type.
    """
    if dtype == torch.float32 or f"{name}_f64" not in case:
        close(actual, case[name], rel=1e-4, abs=2e-5)
    else:
        tolerance = 1e-6 if float32_inside else 1e-10
        close(actual, case[f"{name}_f64"], rel=tolerance, abs=tolerance)


def value(case: Case, name: str) -> float:
    return float(case[f"hp_{name}"])


def numbers(case: Case, pattern: str) -> list[int]:
    """Return what the group of `pattern` matches in the names of the arrays, as numbers, each once."""
    found = (re.fullmatch(pattern, name) for name in case)
    return sorted({int(match[1]) for match in found if match})


# ---- backbones


@parametrize("poa_vit_block")
@DTYPES
def test_vit_block(case: Case, dtype: torch.dtype, suffix: str) -> None:
    poa_backbones.check_vit_block(case, dtype, suffix)


@parametrize("poa_resnet_block")
@DTYPES
def test_resnet_block(case: Case, dtype: torch.dtype, suffix: str) -> None:
    poa_backbones.check_resnet_block(case, dtype, suffix)


@parametrize("poa_swin_stage")
@DTYPES
def test_swin_stage(case: Case, dtype: torch.dtype, suffix: str) -> None:
    poa_backbones.check_swin_stage(case, dtype, suffix)


@parametrize("poa_vit_model")
@DTYPES
def test_vit(case: Case, dtype: torch.dtype, suffix: str) -> None:
    poa_backbones.check_vit(case, dtype, suffix)


@parametrize("poa_resnet_model")
@DTYPES
def test_resnet(case: Case, dtype: torch.dtype, suffix: str) -> None:
    poa_backbones.check_resnet(case, dtype, suffix)


# ---- heads


def fill(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Give `module` the weights of that name, all of them; published names repeat the kind of a layer in front."""
    plain = {re.sub(r"(norm\d?)_norm_", r"\1_", name).replace("_linear_", "_"): array for name, array in arrays.items()}
    for name, parameter in module.named_parameters():
        parameter.data.copy_(tensor(plain[name.replace(".", "_")], parameter.dtype))


def fill_head(head: Head, case: Case, prefix: str, number: int) -> None:
    arrays = {name.removeprefix(prefix): array for name, array in case.items() if name.startswith(prefix)}
    mlp = f"mlp{number}_"
    own = {name.replace(mlp, "mlp_", 1): array for name, array in arrays.items() if name.startswith(mlp)}
    own["prototypes_gain"] = arrays[f"last_layer{number}_weight_g"]
    own["prototypes_direction"] = arrays[f"last_layer{number}_weight_v"]
    fill(head, own)


@parametrize("poa_head")
@DTYPES
def test_heads(case: Case, dtype: torch.dtype, suffix: str) -> None:
    prototypes = case["hp_out_dims"].tolist()
    sizes = [int(value(case, name)) for name in ("max_in_dim", "hidden_dim", "bottleneck_dim")]
    for width in case["hp_widths"].tolist():
        x = tensor(case[f"in_width{width}"], dtype).requires_grad_()
        heads = [Head(*sizes, count).to(dtype) for count in prototypes]
        loss = torch.zeros((), dtype=dtype)
        for i, head in enumerate(heads):
            fill_head(head, case, "param_", i)
            out = head(x)
            agree(out, case, f"out_width{width}_head{i}", dtype)
            loss = loss + (out * tensor(case[f"cotangent_width{width}_head{i}"], dtype)).sum()
        loss.backward()
        agree(x.grad, case, f"grad_in_width{width}", dtype)
        grad = heads[0].mlp[0].weight.grad
        agree(grad, case, f"grad_param_mlp0_0_width{width}", dtype)
        assert not grad[:, width:].any()


# ---- losses


def logits(case: Case, name: str, head: int, dtype: torch.dtype) -> torch.Tensor:
    array = case.get(f"{name}_head{head}_f64", case[f"{name}_head{head}"])
    return tensor(array, dtype)


def heads_of(case: Case) -> list[int]:
    return numbers(case, r"teacher_logits_head(\d+)")


@parametrize("poa_losses")
@DTYPES
def test_sinkhorn_targets(case: Case, dtype: torch.dtype, suffix: str) -> None:
    for head in heads_of(case):
        names = ("teacher_logits", "teacher_patch_logits")
        told = by_sinkhorn(Targets(*(logits(case, name, head, dtype) for name in names)), value(case, "teacher_temp"))
        for out, name in ((told.crops, "out_sinkhorn"), (told.patches, "out_patch_sinkhorn")):
            key = f"{name}_head{head}"
            close(out, case.get(f"{key}_from_f64", case[key]) if dtype == torch.float64 else case[key],
                  rel=1e-4, abs=2e-5 if dtype == torch.float32 else 1e-6)
            close(out.sum(1), 1.0, abs=1e-6)


@parametrize("poa_losses")
def test_centering(case: Case) -> None:
    temperature = value(case, "teacher_temp")
    for head in heads_of(case):
        first, second = (logits(case, name, head, torch.float64) for name in ("teacher_logits", "teacher_logits_step2"))
        patches = logits(case, "teacher_patch_logits", head, torch.float64)
        centering = Centering(first.shape[1], value(case, "center_momentum")).double()
        close(centering(Targets(first, patches), temperature).crops, case[f"out_softmax_center_step1_head{head}_f64"],
              rel=1e-6, abs=1e-6)
        centering.move(Centering.sums(Targets(first, patches)))
        close(centering.crops, case[f"out_center_after_step1_head{head}_f64"].ravel(), rel=1e-6, abs=1e-6)
        close(centering.patches, case[f"out_patch_center_after_step1_head{head}_f64"].ravel(), rel=1e-6, abs=1e-6)
        close(centering(Targets(second, patches), temperature).crops, case[f"out_softmax_center_step2_head{head}_f64"],
              rel=1e-6, abs=1e-6)


@parametrize("poa_losses")
@DTYPES
def test_losses_and_their_gradients(case: Case, dtype: torch.dtype, suffix: str) -> None:
    student, same = value(case, "student_temp"), value(case, "same_view_temp")
    for head in heads_of(case):
        key = f"head{head}"
        target, patch_target = (
            tensor(case.get(f"{name}_{key}_from_f64", case[f"{name}_{key}"]) if dtype == torch.float64
                   else case[f"{name}_{key}"], dtype) for name in ("out_sinkhorn", "out_patch_sinkhorn"))
        whole, local, part, patches = (logits(case, name, head, dtype).requires_grad_() for name in (
            "intact_global_logits", "intact_local_logits", "elastic_global_logits", "student_patch_logits"))
        crops = len(case["mask"])
        empty = whole.detach()[:0]
        losses = {
            "global_ce": (whole, cross_entropy(target, whole, student).mean()),
            "local_ce_sum": (local, local_cross_entropy(target, local, student)),
            "same_view_ce": (part, same_view_loss(Logits(whole, empty, empty), Logits(part, empty, empty), same)),
            "ibot": (patches, patch_loss(patch_target, Logits(empty.new_zeros(crops), empty, patches),
                                         tensor(case["masks_weight"], dtype), student)),
        }
        for name, (x, loss) in losses.items():
            (grad,) = torch.autograd.grad(loss, x)
            agree(loss, case, f"out_{name}_{key}", dtype, float32_inside=True)
            agree(grad, case, f"grad_{name}_{key}", dtype, float32_inside=True)
        (nothing,) = torch.autograd.grad(losses["same_view_ce"][1], whole, allow_unused=True)
        assert nothing is None


@parametrize("poa_losses")
@DTYPES
def test_koleo(case: Case, dtype: torch.dtype, suffix: str) -> None:
    x = tensor(case["koleo_features"], dtype).requires_grad_()
    loss = torch.stack([koleo(crop) for crop in x.chunk(2)]).sum()
    loss.backward()
    agree(loss, case, "out_koleo_sum_two_crops", dtype)
    agree(x.grad, case, "grad_koleo", dtype)


# ---- the whole loss


def whole_method(case: Case, dtype: torch.dtype, *, hides: bool) -> POA:
    """Build the method of the case, with its weights."""
    one = {name: int(value(case, name)) for name in ("min_dim", "max_dim", "head_dim", "min_depth", "max_depth")}
    widths = steps(one["min_dim"], one["max_dim"], one["head_dim"])
    depths = tuple((depth,) for depth in range(one["min_depth"], one["max_depth"] + 1))
    bias = value(case, "net_select_scale")
    cfg = POAConfig(
        prototypes=case["hp_prototypes"].tolist(), hidden=int(value(case, "hidden_dim")),
        bottleneck=int(value(case, "bottleneck_dim")), elastic={"weight": 1 - value(case, "lambda_intact")},
        patches={"start_epoch": 0, "ratio": tuple(case["hp_mask_ratio_min_max"].tolist())} if hides else None,
        koleo=value(case, "koleo_weight"), teacher_temperature=value(case, "teacher_temp"),
        local_crops=int(value(case, "num_local_crops")), crop={"size": int(value(case, "global_size"))},
        local_crop={"size": int(value(case, "local_size"))},
    )

    def backbone() -> nn.Module:
        network = ElasticViT(Grid(widths, depths, bias, bias), patch=int(value(case, "patch_size")),
                             head_width=one["head_dim"], img_size=int(value(case, "global_size")))
        network.input = None
        return network

    images = int(value(case, "batch"))
    method = POA(cfg, backbone, Info(0, 0, 1, None, {"train": StreamInfo(images, images)})).to(dtype).eval()
    assert len(method.student.backbone.grid.candidates) - 1 == value(case, "ids_excluding_intact")
    for network, who in ((method.student, "student"), (method.teacher, "teacher")):
        prefix = f"param_{who}_backbone_"
        arrays = {name.removeprefix(prefix): array for name, array in case.items() if name.startswith(prefix)}
        fill(network.backbone, {name: a.reshape(1, -1) if name == "mask_token" else a for name, a in arrays.items()})
        for number, head in enumerate(network.heads):
            fill_head(head, case, f"param_{who}_dino_head_", number)
    return method


def step_of(method: POA, size: Size) -> Step:
    """Return the first update at which the elastic student has that size."""
    grid = method.student.backbone.grid
    update = next(i for i in range(len(grid.candidates)) if grid.drawn(0, 0, i) == size)
    return Step(update, 100, 100, 0, 1, 1, 0.0, 0, generator(0), generator(1))


def views_of(case: Case, dtype: torch.dtype, *, hides: bool) -> dict[str, torch.Tensor]:
    crops = tensor(case["in_global"], dtype).chunk(2)
    local = tensor(case["in_local"], dtype).chunk(int(value(case, "num_local_crops")))
    views = {f"view{i}": x for i, x in enumerate([*crops, *local])}
    masks = torch.as_tensor(case["in_masks"]).flatten(1).chunk(2)
    return views | ({"mask0": masks[0], "mask1": masks[1]} if hides else {})


def gradients(method: POA, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return the students' gradients under the names of the arrays."""
    found = {f"backbone_{name.replace('.', '_')}": p.grad for name, p in method.student.backbone.named_parameters()}
    for i, head in enumerate(method.student.heads):
        found |= {f"dino_head_{name.replace('.', '_').replace('mlp', f'mlp{i}')}": p.grad
                  for name, p in head.mlp.named_parameters("mlp")}
        found[f"dino_head_last_layer{i}_weight_v"] = head.prototypes.direction.grad
        found[f"dino_head_last_layer{i}_weight_g"] = head.prototypes.gain.grad
    plain = {name: re.sub(r"(norm\d?)_norm_", r"\1_", name).replace("_linear_", "_") for name in names}
    return {name: found[key] for name, key in plain.items()}


@parametrize("poa_total_loss")
@DTYPES
@pytest.mark.parametrize("phase", ["with_ibot", "no_ibot"])
def test_whole_loss_and_its_gradients(case: Case, dtype: torch.dtype, suffix: str, phase: str) -> None:
    hides = phase == "with_ibot"
    method = whole_method(case, dtype, hides=hides)
    width, depth = case["hp_elastic_width_depth"].tolist()
    terms = method(views_of(case, dtype, hides=hides), step_of(method, Size(width, (depth,)))).terms
    loss = sum(terms.values())
    loss.backward()
    agree(loss, case, f"out_total_loss_{phase}", dtype, float32_inside=True)
    names = [name.removeprefix(f"grad_{phase}_") for name in case
             if name.startswith(f"grad_{phase}_") and not name.endswith("_f64")]
    assert names
    for name, grad in gradients(method, names).items():
        agree(grad, case, f"grad_{phase}_{name}", dtype, float32_inside=True)
    logged = {name: sum(float(a) for key, a in case.items() if key.startswith(f"out_logged_{phase}_{name}")
                        and key.endswith("_f64") == bool(suffix)) for name in ("dino", "distill", "ibot", "koleo")}
    count = len(method.student.heads)
    published = {"cross_view": logged["dino"] / count, "koleo": 2 * logged["koleo"],  # logged at half their value
                 "same_view": (1 - value(case, "lambda_intact")) * logged["distill"] / count}
    published |= {"patches": 2 * logged["ibot"] / count} if hides else {}
    assert terms.keys() == published.keys()
    for name, term in terms.items():
        close(term, published[name], rel=1e-4)
    assert all(p.grad is None for p in method.teacher.parameters())


# ---- schedules and groups


@parametrize("poa_schedules")
def test_schedules(case: Case) -> None:
    for i in numbers(case, r"sched(\d+)_values"):
        own = f"hp_sched{i}_"
        hp = {name.removeprefix(own): float(array) for name, array in case.items() if name.startswith(own)}
        curve = Curve(
            start=hp["base_value"], end=hp["final_value"], horizon=int(hp["total_iters"] / hp["iter_num_scale"]),
            warmup=int(hp.get("warmup_iters", 0)), warmup_start=hp.get("start_warmup_value", 0.0),
            warmup_rule="k/(w-1)",
        )
        expected = case[f"sched{i}_values"]
        close(np.array([curve.at(k) for k in range(len(expected))]), expected, rel=1e-12, abs=1e-15)
        close(np.array(curve.at(10**6)), case[f"sched{i}_past_end"], rel=1e-12)


def made_on_meta(recipe: str, network: nn.Module, *options: str) -> tuple[POA, dict[str, dict]]:
    """Return the recipe's method on that backbone, without memory, and the optimizer's group of every parameter."""
    read = read_recipe(recipe, list(options))
    network.input = None
    with torch.device("meta"):
        method = POA(read.method, lambda: network, Info(0, 0, 1, None, {"train": StreamInfo(10**6, 64)}))
    names = {id(p): name for name, p in method.named_parameters()}
    groups = build_optimizer(method, read.optim).param_groups
    return method, {names[id(p)]: group for group in groups for p in group["params"]}


def rates_agree(case: Case, family: str, groups: dict[str, dict], names: dict[str, str]) -> None:
    """Compare factors of learning rates, and what decays; names: ours by the published ones, of those built here."""
    published, rates, decays = (case[f"{family}_{what}"] for what in ("param_names", "lr_multiplier", "wd_multiplier"))
    for name, rate, decay in zip(published.tolist(), rates, decays, strict=True):
        if name not in names:
            continue
        group = groups[names[name]]
        assert group["lr_mult"] == pytest.approx(rate, rel=1e-12), name
        assert group["follows_decay"] == bool(decay) and (decay or group["weight_decay"] == 0), name


def plain_name(name: str) -> str:
    return re.sub(r"(norm\d?)\.norm\.", r"\1.", name).replace(".linear.", ".")


@parametrize("poa_schedules")
def test_learning_rates_and_decay_of_vits_and_heads(case: Case) -> None:
    for number in numbers(case, r"hp_vit(\d+)_patch_size"):
        family = f"vit{number}"
        poa_backbones.check_published_vit(case, family)
        hp = {key: int(value(case, f"{family}_{key}")) for key in (
            "patch_size", "min_embed_dim", "max_embed_dim", "min_depth", "max_depth", "head_dim")}
        depths = tuple((depth,) for depth in range(hp["min_depth"], hp["max_depth"] + 1))
        grid = Grid(steps(hp["min_embed_dim"], hp["max_embed_dim"], hp["head_dim"]), depths)
        with torch.device("meta"):
            network = ElasticViT(grid, patch=hp["patch_size"], head_width=hp["head_dim"])
        method, groups = made_on_meta("poa-vit-l", network)
        names = {name: f"student.backbone.{plain_name(name)}" for name in case[f"{family}_param_names"].tolist()}
        rates_agree(case, family, groups, names)
        assert sorted(names.values()) == sorted(name for name in groups if ".backbone." in name)
        heads = {name: head_name(name) for name in case["head_param_names"].tolist()}
        rates_agree(case, "head", groups, heads)
        waiting = {name for group in method.param_groups() if group.frozen_epochs for name in group.names}
        last = {heads[name] for name, last in zip(heads, case["head_is_last_layer"], strict=True) if last}
        assert waiting == last


@parametrize("poa_schedules")
@pytest.mark.parametrize("family", ["swin", "resnet"])
def test_learning_rates_and_decay_of_swin_and_resnet(case: Case, family: str) -> None:
    network = getattr(poa_backbones, f"published_{family}")(case)
    options = (f"method.layer_decay={0.9 if family == 'swin' else 0.95}", "optim.exclude_decay=[bias, '*norm*']")
    _, groups = made_on_meta("poa-vit-l", network, *options)
    own = {name.replace(".", "_"): f"student.backbone.{name}" for name, _ in network.named_parameters()}
    names = {name: own[key] for name in case[f"{family}_param_names"].tolist()
             if (key := poa_backbones.ours(name)) in own}
    rates_agree(case, family, groups, names)
    assert sorted(names.values()) == sorted(own.values())
    left_out = set(case[f"{family}_param_names"].tolist()) - set(names)
    assert all(re.match(r"norm[012]\.", name) for name in left_out)  # Swin's, which nothing uses


def head_name(name: str) -> str:
    """Return our name of a head's parameter: mlp0.0.linear.weight, last_layer0.weight_v."""
    number = re.search(r"\d+", name)[0]
    inner = name.replace(f"mlp{number}.", "mlp.").replace(".linear.", ".")
    inner = inner.replace(f"last_layer{number}.weight_g", "prototypes.gain")
    return f"student.heads.{number}." + inner.replace(f"last_layer{number}.weight_v", "prototypes.direction")
