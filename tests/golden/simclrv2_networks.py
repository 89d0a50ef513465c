"""Parts of SimCLRv2's network with the weights of a golden case."""

from __future__ import annotations

import re

import numpy as np
import torch
from golden_files import Case, close
from timm.models.resnet import Bottleneck, downsample_avg, downsample_conv
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.selective_kernel import SelectiveKernel, SelectiveKernelBottleneck
from unlabeled.config.recipe import Backbone
from unlabeled.methods import simclrv2
from unlabeled.methods.simclrv2_config import Head


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


def kernel_of(case: Case) -> SelectiveKernel:
    kernel = SelectiveKernel(
        case["input_nchw"].shape[1], int(case["filters"]), int(case["stride"]), float(case["sk_ratio"])
    )
    fill_kernel(kernel, case, "")
    assert kernel.squeeze.out_channels == int(case["squeeze_channels"])
    return kernel


def block_of(case: Case) -> Bottleneck:
    """A block as timm's ResNet puts it together from its own shortcut and this package's or timm's bottleneck."""
    channels, filters, stride = case["input_nchw"].shape[1], int(case["filters"]), int(case["stride"])
    selective = float(case["sk_ratio"]) > 0
    shortcut = None
    if case["use_projection"]:
        shortcut = (downsample_avg if selective else downsample_conv)(channels, 4 * filters, 1, stride)
        fill_convolution(shortcut[1 if selective else 0], case["shortcut_1x1_weight_oihw"])
        fill_norm(shortcut[-1], case, "shortcut_bn")
    if selective:
        block = SelectiveKernelBottleneck(channels, filters, stride, shortcut, sk_ratio=float(case["sk_ratio"]))
        fill_kernel(block.conv2, case, "sk_")
    else:
        block = Bottleneck(channels, filters, stride, shortcut)
        fill_convolution(block.conv2, case["conv2_3x3_weight_oihw"])
        fill_norm(block.bn2, case, "bn2")
    for number in (1, 3):
        fill_convolution(getattr(block, f"conv{number}"), case[f"conv{number}_1x1_weight_oihw"])
        fill_norm(getattr(block, f"bn{number}"), case, f"bn{number}")
    return block


def pools() -> tuple[nn.Module, nn.Module, nn.Module]:
    """The max-pool of the stem and the shortcuts' average pools of stride 1 and 2, from a whole network."""
    network = build_backbone(Backbone(name="resnet50", width=0.125, sk_ratio=0.0625))
    return network.maxpool, network.layer1[0].downsample[0], network.layer2[0].downsample[0]


def fill_kernel(kernel: SelectiveKernel, case: Case, prefix: str) -> None:
    fill_convolution(kernel.streams, case[f"{prefix}conv3x3_two_streams_weight_oihw"])
    fill_norm(kernel.streams_bn, case, f"{prefix}bn_two_streams")
    fill_convolution(kernel.squeeze, case[f"{prefix}squeeze_1x1_weight_oihw"])
    fill_norm(kernel.squeeze_bn, case, f"{prefix}bn_squeeze")
    fill_convolution(kernel.select, case[f"{prefix}select_1x1_weight_oihw"])


def fill_convolution(convolution: nn.Module, weight: np.ndarray) -> None:
    convolution.load_state_dict({"weight": torch.as_tensor(weight)})


def fill_norm(norm: nn.Module, case: Case, name: str) -> None:
    names = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
    state = {key: torch.as_tensor(case[f"{name}_{array}"]) for key, array in names.items()}
    norm.load_state_dict({**state, "num_batches_tracked": torch.tensor(0)})
