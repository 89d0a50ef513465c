"""From a method's parameter groups and the recipe's `optim:` block to an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.config.base.curve import CurveRule
from unlabeled.config.base.objects import is_dotted, load_object, refuse_unknown_options
from unlabeled.config.base.optim import Optim
from unlabeled.engine.optim.adamp import AdamP
from unlabeled.engine.optim.lars import LARS
from unlabeled.errors import UserError
from unlabeled.methods.base import Group, Method
from unlabeled.ops.norms import norm_parameters


def build_optimizer(method: Method, optim: Optim) -> Optimizer:
    """Build the optimizer over all groups of `method`.

    Raises ValueError if the groups do not hold every trainable parameter exactly once, UserError for a pattern of
    `exclude_decay` or `exclude_lars` that matches nothing.
    """
    groups = method.param_groups()
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    held = [name for group in groups for name in group.names]
    if sorted(held) != sorted(named):
        odd = sorted(set(held) ^ set(named)) or sorted({name for name in held if held.count(name) > 1})
        raise ValueError(f"param_groups of {type(method).__name__} must hold every parameter once; see {odd[:5]}")
    if all(group.frozen == "grad" and group.frozen_epochs > 0 for group in groups):
        raise ValueError(f"param_groups of {type(method).__name__} drop all gradients, so an epoch trains nothing")
    no_decay = _matching(method, named, optim.exclude_decay, "exclude_decay")
    no_lars = _matching(method, named, optim.exclude_lars, "exclude_lars")
    split = [part for group in groups for part in _split(group, named, optim, no_decay, no_lars)]
    if is_dotted(optim.name):
        return _own(optim, split)
    match optim.name:
        case "lars":
            return LARS(split, momentum=optim.momentum, nesterov=optim.nesterov, **optim.lars.model_dump())
        case "sgd":
            return torch.optim.SGD(split, lr=0.0, momentum=optim.momentum, nesterov=optim.nesterov)
        case "adamw":
            return torch.optim.AdamW(split, lr=0.0, betas=optim.betas)
        case "adamp":
            return AdamP(split, betas=optim.betas, nesterov=optim.nesterov, **optim.adamp.model_dump())


def _own(optim: Optim, split: list[dict[str, Any]]) -> Optimizer:
    """Call an optimizer of the user's own. Raises UserError if it is none, or knows no weight decay but should."""
    kind = load_object(optim.name)
    refuse_unknown_options("optim.options", kind, optim.name, optim.options)
    try:
        optimizer = kind(split, lr=1e-3, **optim.options)  # every update sets the rate; some refuse 0
    except (TypeError, ValueError) as error:
        raise UserError(f"optim.name: '{optim.name}' does not take parameter groups, lr and optim.options: {error}"
                        ) from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optim.name: '{optim.name}' must give a torch.optim.Optimizer, not a "
                        f"{type(optimizer).__name__}")
    decays = any(group["weight_decay"] or group["follows_decay"] for group in split)
    if "weight_decay" not in optimizer.defaults and decays:
        raise UserError(f"optim.weight_decay has no effect with '{optim.name}', whose defaults have none; set it to 0")
    return optimizer


def set_learning_rate(optimizer: Optimizer, lr: float, epoch: float) -> None:
    """Give every group the learning rate `lr` of this update times its own factor; 0 while it is frozen by that."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if _is_frozen(group, "lr", epoch) else lr * group["lr_mult"]


def set_weight_decay(optimizer: Optimizer, decay: float) -> None:
    """Give the weight decay of this update to every group that follows the recipe's curve."""
    for group in optimizer.param_groups:
        if group.get("follows_decay"):  # checkpoints of earlier versions lack the key
            group["weight_decay"] = decay


def drop_frozen_gradients(optimizer: Optimizer, epoch: float) -> None:
    """Drop the gradients of groups that are frozen so: the optimizer then leaves weights and moments as they are."""
    for group in optimizer.param_groups:
        if _is_frozen(group, "grad", epoch):
            for p in group["params"]:
                p.grad = None


def _is_frozen(group: Mapping[str, Any], kind: str, epoch: float) -> bool:
    return epoch < group["frozen_epochs"] and group.get("frozen", "lr") == kind


@torch.no_grad()
def clip_and_norm(optimizer: Optimizer, clip: float | None) -> Tensor:
    """Clip the gradient of every part to the norm `clip`; return the norm of the whole gradient before, 0-d."""
    parts: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        parts.setdefault(group["part"], []).extend(p.grad for p in group["params"] if p.grad is not None)
    norms = []
    for grads in filter(None, parts.values()):
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        norms.append(norm)
        if clip is not None:
            torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp_max(1.0))
    if not norms:
        return optimizer.param_groups[0]["params"][0].new_zeros(())
    return torch.stack(norms).norm()


def _split(
    group: Group, named: Mapping[str, Tensor], optim: Optim, no_decay: set[str], no_lars: set[str]
) -> list[dict[str, Any]]:
    rule = optim.weight_decay
    common = (0.0, True) if isinstance(rule, CurveRule) else (rule, False)  # the curve's value comes with the update
    kinds: dict[tuple[float, bool, bool], list[Tensor]] = {}
    for name in group.names:
        own = group.decay if group.decay is not None else 0.0 if name in no_decay else None
        adapt = group.lars if group.lars is not None else name not in no_lars
        kinds.setdefault((*(common if own is None else (own, False)), adapt), []).append(named[name])
    return [
        {
            "params": params,
            "weight_decay": decay,
            "follows_decay": follows,
            "adapt": adapt,
            "lr_mult": group.lr_mult,
            "part": group.part,
            "frozen_epochs": group.frozen_epochs,
            "frozen": group.frozen,
        }
        for (decay, follows, adapt), params in kinds.items()
    ]


def _matching(method: nn.Module, named: Mapping[str, Tensor], rules: list[str], key: str) -> set[str]:
    norms = norm_parameters(method).keys()
    names: set[str] = set()
    for rule in rules:
        match rule:
            case "norm":
                names |= norms & set(named)
            case "bias":
                names |= {name for name in named if name.rpartition(".")[2] == "bias"}
            case "one_dimensional":
                names |= {name for name, p in named.items() if p.ndim <= 1}
            case pattern:
                hits = {name for name in named if fnmatchcase(name, pattern)}
                if not hits:
                    raise UserError(
                        f"optim.{key}: no parameter is named like '{pattern}'; kinds: norm, bias, one_dimensional"
                    )
                names |= hits
    return names
