"""Parts of POA's networks with the weights of a golden case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from golden_files import Case, close, tensor
from torch import nn

from unlabeled.backbones.elastic import swin
from unlabeled.backbones.elastic.build import elastic_resnet, elastic_swin, elastic_vit
from unlabeled.backbones.elastic.layers import LayerNorm
from unlabeled.backbones.elastic.network import ElasticNetwork, Features
from unlabeled.backbones.elastic.resnet import Bottleneck, ElasticResNet
from unlabeled.backbones.elastic.sizes import Size, chosen_blocks
from unlabeled.backbones.elastic.vit import Block

SINGLE = {"rel": 1e-4, "abs": 2e-5}
DOUBLE = {"rel": 1e-10, "abs": 1e-10}

# how names of the published code differ, dots written as underscores
_RULES = (
    (r"^stages_(\d)_downsample", lambda found: f"layers_{int(found[1]) + 1}_downsample"),  # here with the next stage
    (r"^stages_", "layers_"),
    (r"^norm3_norm_", "norm_"),  # Swin's last; those of other stages are not built
    (r"^(layer\d)_layers_", r"\1_"),
    (r"attn_w_msa_", "attn_"),
    (r"ffn_", "mlp_"),
    (r"(norm\d?)_norm_", r"\1_"),
    (r"_(linear|conv)_", "_"),
)


def ours(name: str) -> str:
    """Return the name here of a published parameter, with underscores for dots."""
    name = name.replace(".", "_")
    for pattern, by in _RULES:
        name = re.sub(pattern, by, name)
    return name


def by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names with underscores for dots."""
    return {name.replace(".", "_"): p for name, p in module.named_parameters()}


@torch.no_grad()
def fill(module: nn.Module, case: Case, prefix: str = "param_") -> None:
    """Give a module all parameters of a case whose names begin with `prefix`, no more and no less than it has."""
    given = {ours(name.removeprefix(prefix)): array for name, array in case.items() if name.startswith(prefix)}
    parameters = by_name(module)
    assert set(given) == set(parameters)
    for name, p in parameters.items():
        p.copy_(torch.from_numpy(given[name]))


def gradients(module: nn.Module, case: Case, suffix: str) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield (here, published) for the parameters whose gradients a case holds; there is at least one."""
    names = [name for name in case if name.startswith("grad_param_") and name.endswith(suffix)]
    assert names
    for name in names:
        inner, parameters = ours(name.removeprefix("grad_param_").removesuffix(suffix)), by_name(module)
        yield parameters.get(inner, parameters.get(f"{inner}_weight")).grad.numpy(), case[name]


def tolerance(dtype: torch.dtype, *, resized: bool = False) -> dict[str, float]:
    """What the README of the arrays says; the published code resizes positions in float32."""
    if dtype == torch.float32:
        return SINGLE
    return {"rel": 1e-6, "abs": 1e-6} if resized else DOUBLE


def hyper(case: Case, name: str) -> int:
    return int(case[f"hp_{name}"])


def check_vit_block(case: Case, dtype: torch.dtype, suffix: str) -> None:
    """Compare a block of a vision transformer."""
    block = Block(hyper(case, "max_dim"), hyper(case, "head_dim"), 1.0)
    assert float(case["hp_layernorm_eps"]) == block.norm1.eps
    assert block.mlp.fc1.out_features == case["hp_mlp_ratio"] * hyper(case, "max_dim")
    fill(block, case)
    for width in case["hp_widths"]:
        check_block(block.to(dtype), case, f"in_width{width}", f"_width{width}", suffix)


def check_resnet_block(case: Case, dtype: torch.dtype, suffix: str) -> None:
    """Compare a bottleneck."""
    outputs = hyper(case, "out_channels")
    block = Bottleneck(hyper(case, "in_channels"), outputs // 2, outputs, hyper(case, "stride"),
                       hyper(case, "num_groups"))
    assert float(case["hp_groupnorm_eps"]) == block.norm1.eps
    fill(block, case)
    for width in case["widths"]:
        check_block(block.to(dtype), case, "in", f"_width{width}", suffix, int(width))


def check_block(block: nn.Module, case: Case, name: str, width: str, suffix: str, *options: int) -> None:
    """Compare a block's output, and its gradients by the input and by whole parameters."""
    block.zero_grad()
    dtype = next(block.parameters()).dtype
    x = tensor(case[name], dtype).requires_grad_()
    out = block(x, *options)
    close(out, case[f"out{width}{suffix}"], **tolerance(dtype))
    out.backward(tensor(case[f"cotangent{width}"], dtype))
    close(x.grad, case[f"grad_in{width}{suffix}"], **tolerance(dtype))
    for found, expected in gradients(block, case, width):
        close(found, expected, **SINGLE)


def check_swin_stage(case: Case, dtype: torch.dtype, suffix: str) -> None:
    """Compare patch embedding, a stage with padded and shifted windows, merging and norm."""
    width, window, depth = hyper(case, "max_dim"), hyper(case, "window"), hyper(case, "depth_max")
    assert np.array_equal(swin.relative_positions(window), case["relative_position_index"])
    parts = nn.ModuleDict({
        "patch_embed": swin.PatchEmbed(hyper(case, "patch_size"), width),
        "stage": swin.Stage(width, hyper(case, "head_dim"), window, range(depth), merging=False),
        "norm": LayerNorm(2 * width, swin.EPS),
    })  # fmt: skip
    parts["stage"].downsample = swin.Merging(width)  # published with the stage before
    assert float(case["hp_layernorm_eps"]) == swin.EPS
    fill(parts, case)
    parts = parts.to(dtype)
    merging, parts["stage"].downsample = parts["stage"].downsample, nn.Identity()
    for name in [name for name in case if name.startswith("cotangent_")]:
        size = name.removeprefix("cotangent")
        narrow, shallow = map(int, re.fullmatch(r"_w(\d+)_d(\d+)", size).groups())
        chosen = chosen_blocks(shallow, depth)
        assert chosen == case[f"block_index_d{shallow}"].tolist()
        x = tensor(case["in"], dtype).requires_grad_()
        tokens = parts["patch_embed"](x, narrow)
        stage = parts["stage"](tokens, chosen, None, lambda x, blocks, depth: nn.Sequential(*blocks)(x))
        merged = merging(stage)
        found = {"tokens": tokens, "stage_out": stage, "merged": merged, "merged_norm": parts["norm"](merged)}
        for part, value in found.items():
            expected = f"out{size}_{part}{suffix}"
            if expected in case:
                close(value.flatten(1, 2), case[expected], **tolerance(dtype))
        found["merged_norm"].flatten(1, 2).backward(tensor(case[name], dtype))
        close(x.grad, case[f"out{size}_grad_in{suffix}"], **tolerance(dtype))


def check_vit(case: Case, dtype: torch.dtype, suffix: str) -> None:
    """Compare a vision transformer at several sizes, and its candidates."""
    network = elastic_vit(
        widths=(hyper(case, "min_dim"), hyper(case, "max_dim"), hyper(case, "head_dim")),
        depths=(hyper(case, "min_depth"), hyper(case, "max_depth")), sample_bias=hyper(case, "net_select_scale"),
        patch_size=hyper(case, "patch_size"), head_width=hyper(case, "head_dim"), img_size=hyper(case, "global_size"),
    )  # fmt: skip
    fill(network, case)
    network = network.to(dtype).eval()
    check_candidates(network, case["networks_unique_width_depth"], case["networks_copies"],
                     case["networks_total_entries"])
    check_block_indices(case, "block_index_depth", hyper(case, "max_depth"))
    for width, depth in case["hp_networks_run"]:
        for view, found in views(network, Size(int(width), (int(depth),)), case, dtype):
            expected = f"out_w{width}_d{depth}_{view}"
            close(found.vector, case[f"{expected}_cls{suffix}"], **tolerance(dtype, resized=view == "local"))
            tokens = found.tokens.mean(1) if suffix else found.tokens  # the float64 arrays hold their mean
            close(tokens, case[f"{expected}_patch{suffix}"], **tolerance(dtype, resized=view == "local"))


def check_resnet(case: Case, dtype: torch.dtype, suffix: str) -> None:
    """Compare a ResNet at several sizes, and its candidates."""
    network = resnet_of(case["widths"], case["depths_sorted"], hyper(case, "net_select_scale"),
                        hyper(case, "num_groups"))
    assert network.conv1.out_channels == hyper(case, "base_channels")
    fill(network, case)
    network = network.to(dtype).eval()
    grid = network.grid
    assert len(grid.candidates) == case["networks_total_entries"]
    assert grid.copies == case["networks_copies_per_depth"].tolist() * len(grid.widths)
    sizes = {found[0]: found for name in case if (found := re.match(r"out_w(\d+)_d\d+x(\d+)x(\d+)x\d+", name))}
    assert sizes
    for prefix, found in sizes.items():
        width, second, third = map(int, found.groups())
        for view, features in views(network, Size(width, (second, third)), case, dtype):
            close(features.vector, case[f"{prefix}_{view}_pooled{suffix}"], **tolerance(dtype))
            close(features.tokens, case[f"{prefix}_{view}_region"], **SINGLE)  # which is there in float32 alone


def views(network: ElasticNetwork, size: Size, case: Case, dtype: torch.dtype) -> Iterator[tuple[str, Features]]:
    """Yield what a sub-network gives of the crops: global, with masked places, local."""
    crops = {"global": tensor(case["in_global"], dtype), "local": tensor(case["in_local"], dtype)}
    with torch.no_grad():
        yield from ((view, network.features(x, size)) for view, x in crops.items())
        yield "global_masked", network.features(crops["global"], size, torch.from_numpy(case["in_mask"]))


def resnet_of(widths: np.ndarray, depths: np.ndarray, bias: float, groups: int = 32) -> ElasticResNet:
    """Build the network of these middle widths and blocks per stage, one row each."""
    first = widths[:, 0].tolist()
    network = elastic_resnet(
        widths=(first[0], first[-1], first[1] - first[0]), sample_bias=bias, groups=groups,
        depths=[[int(column.min()), int(column.max())] for column in depths.T[1:3]],
        outer_blocks=depths[-1, [0, 3]].tolist(),
    )  # fmt: skip
    assert network.grid.widths == tuple(first) and np.array_equal(widths, widths[:, :1] * 2 ** np.arange(4))
    assert network.grid.depths == tuple(map(tuple, depths[:, 1:3].tolist()))
    return network


def check_candidates(network: ElasticNetwork, sizes: np.ndarray, copies: np.ndarray, total: np.ndarray) -> None:
    assert [[size.width, *size.depth] for size in network.grid.sizes] == sizes.tolist()
    assert network.grid.copies == copies.tolist() and len(network.grid.candidates) == total


def check_block_indices(case: Case, prefix: str, blocks: int) -> None:
    depths = [int(name.removeprefix(prefix)) for name in case if name.startswith(prefix)]
    assert depths
    for depth in depths:
        assert chosen_blocks(depth, blocks) == case[f"{prefix}{depth}"].tolist()


def check_published_vit(case: Case, family: str) -> None:
    """Compare candidates and blocks of a vision transformer of real size."""
    values = {key: hyper(case, f"{family}_{key}") for key in (
        "patch_size", "min_embed_dim", "max_embed_dim", "min_depth", "max_depth", "head_dim", "net_select_scale",
    )}  # fmt: skip
    with torch.device("meta"):
        network = elastic_vit(
            widths=(values["min_embed_dim"], values["max_embed_dim"], values["head_dim"]),
            depths=(values["min_depth"], values["max_depth"]), sample_bias=values["net_select_scale"],
            patch_size=values["patch_size"], head_width=values["head_dim"],
        )  # fmt: skip
    table = case[f"{family}_width_depth_copies"]
    check_candidates(network, table[:, :2], table[:, 2], case[f"{family}_total_entries"])
    check_block_indices(case, f"{family}_block_index_depth", values["max_depth"])


def published_swin(case: Case) -> swin.ElasticSwin:
    """Build the Swin of real size, whose candidates are compared."""
    table = case["swin_width_depth_copies"]
    widths, depths = sorted(set(table[:, 0].tolist())), table[:, 1].tolist()
    with torch.device("meta"):
        network = elastic_swin(widths=(widths[0], widths[-1], widths[1] - widths[0]), depths=(min(depths), max(depths)))
    check_candidates(network, table[:, :2], table[:, 2], case["swin_total_entries"])
    return network


def published_resnet(case: Case) -> ElasticResNet:
    """Build the ResNet of real size, whose candidates are compared."""
    with torch.device("meta"):
        network = resnet_of(case["resnet_widths"], case["resnet_depths_sorted"], 2)
    assert network.grid.copies == case["resnet_copies"].ravel().tolist()
    assert len(network.grid.candidates) == case["resnet_total_entries"]
    return network
