"""timm's ResNets with a width factor and a stem for small images (arXiv 1512.03385; widths: arXiv 2006.10029)."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from torch import nn

from unlabeled.backbones.options import constructor_options, written
from unlabeled.backbones.selective_kernel import selective_kernel_resnet
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError

LAYERS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnet200": (Bottleneck, (3, 24, 36, 3)),
}


def build_resnet(cfg: Backbone) -> ResNet:
    """Build a ResNet of timm's own class, so that its weights load into timm; forward: [b, 3, S, S] -> [b, features].

    `width` multiplies every channel count, stem and block outputs included. Raises UserError for a width that does not
    give whole channel counts.
    """
    block, layers = LAYERS[cfg.name]
    stem = 64 * cfg.width
    if stem != int(stem) or int(stem) % 2:
        raise UserError(f"backbone.width {cfg.width:g} gives {stem:g} stem channels; use a multiple of {1 / 32:g}")
    if cfg.sk_ratio:
        model = selective_kernel_resnet(layers, _channels(cfg), cfg.sk_ratio)
    else:
        model = ResNet(block, layers, num_classes=0, **_stem_options(cfg), **constructor_options(cfg))
    if cfg.stem == "cifar" or (cfg.width != 1 and not cfg.sk_ratio):
        kernel, stride = (3, 1) if cfg.stem == "cifar" else (7, 2)
        model.conv1 = nn.Conv2d(3, int(stem), kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if cfg.stem == "cifar":
        model.maxpool = nn.Identity()
    if cfg.project_first:
        shortcut = model.layer1[0].downsample = downsample_conv(int(stem), int(stem), 1)
        nn.init.kaiming_normal_(shortcut[0].weight, mode="fan_out", nonlinearity="relu")
    return model


def _channels(cfg: Backbone) -> tuple[int, ...]:
    return tuple(int(64 * cfg.width * 2**stage) for stage in range(4))


def _stem_options(cfg: Backbone) -> dict[str, object]:
    # timm's plain stem always has 64 channels; its deep stem scales, and conv1 is then replaced by the plain one
    if cfg.width == 1:
        return {}
    return {"channels": _channels(cfg), "stem_type": "deep", "stem_width": int(32 * cfg.width)}


def loading_lines(cfg: Backbone, weights: str) -> str:
    """Return the Python lines that load exported `weights` of a plain ResNet into timm without this package."""
    block, layers = LAYERS[cfg.name]
    stem = int(64 * cfg.width)
    lines = ["import timm, torch", "from safetensors.torch import load_file"]
    if cfg.width == 1:
        lines.append(f'model = timm.create_model("{cfg.name}", num_classes=0{written(cfg)})')
    else:
        options = ", ".join(f"{key}={value!r}" for key, value in _stem_options(cfg).items())
        lines.append(f"from timm.models.resnet import {block.__name__}, ResNet")
        lines.append(f"model = ResNet({block.__name__}, {layers}, num_classes=0, {options}{written(cfg)})")
    if cfg.stem == "cifar":
        lines.append(f"model.conv1 = torch.nn.Conv2d(3, {stem}, 3, 1, 1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    elif cfg.width != 1:
        lines.append(f"model.conv1 = torch.nn.Conv2d(3, {stem}, 7, 2, 3, bias=False)")
    if cfg.project_first:
        lines.append(f"convolution = torch.nn.Conv2d({stem}, {stem}, 1, bias=False)")
        lines.append(f"model.layer1[0].downsample = torch.nn.Sequential(convolution, torch.nn.BatchNorm2d({stem}))")
    lines.append(f'model.load_state_dict(load_file("{weights}"))')
    return "\n".join(lines)
