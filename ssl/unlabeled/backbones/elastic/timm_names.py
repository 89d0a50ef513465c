"""Weights of elastic networks under the names of timm's classes, and the Python lines that build those."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.resnet import ElasticResNet
from unlabeled.backbones.elastic.swin import ElasticSwin
from unlabeled.backbones.elastic.vit import ElasticViT


def timm_lines(network: ElasticNetwork) -> str | None:
    """Return the Python lines that build timm's network, as `model`, that computes what this one does at full size.

    None where timm has none. `timm_agrees` says on which images the two agree.
    """
    if isinstance(network, ElasticViT):
        width, (depth,) = network.grid.full
        return (
            "from timm.models.vision_transformer import VisionTransformer\n"
            f"model = VisionTransformer(img_size={network.img_size}, patch_size={network.patch}, embed_dim={width}, "
            f"depth={depth}, num_heads={width // network.head_width}, init_values={network.layer_scale}, num_classes=0)"
        )
    if isinstance(network, ElasticResNet):
        return _resnet_lines(network)
    return _swin_lines(network) if isinstance(network, ElasticSwin) else None


def timm_agrees(network: ElasticNetwork, side: int) -> bool:
    """Return whether the network of `timm_lines` computes the same on images of `side` pixels.

    Those are images of the training size (ViT), of any size (ResNet), and of sizes whose maps the windows tile, such as
    224 pixels (Swin: timm pads behind the shift).
    """
    if isinstance(network, ElasticSwin):
        return side % (8 * network.patch * network.window) == 0
    return not isinstance(network, ElasticViT) or side == network.img_size


def timm_state(network: ElasticNetwork) -> dict[str, Tensor]:
    """Return the weights as the network of `timm_lines` loads them; the token of masked places is left out."""
    state = {name: value for name, value in network.state_dict().items() if name != "mask_token"}
    if isinstance(network, ElasticResNet):
        return {name.replace("norm", "bn"): value for name, value in state.items()}
    if isinstance(network, ElasticSwin):
        return {name: _columns_first(value) if ".downsample." in name else value for name, value in state.items()}
    return state


def _resnet_lines(network: ElasticResNet) -> str | None:
    width = network.grid.full.width
    if network.conv1.out_channels != 64:  # of timm's plain stem
        return None
    layers = (network.outer[0], *network.grid.full.depth, network.outer[1])
    lines = (
        "from functools import partial\nfrom timm.layers import GroupNorm\n"
        "from timm.models.resnet import Bottleneck, ResNet\n"
        f"norm = partial(GroupNorm, num_groups={network.groups})\n"
        f"model = ResNet(Bottleneck, {layers}, base_width={width}, norm_layer=norm, num_classes=0)"
    )
    if network.stem == "imagenet":
        return lines
    stem = "model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)\nmodel.maxpool = torch.nn.Identity()"
    return f"import torch\n{lines}\n{stem}"


def _swin_lines(network: ElasticSwin) -> str | None:
    # most that were cut out have a wider patch embedding, or shifted blocks next to each other
    width = network.grid.full.width
    stages = [[block.attn.shift for block in stage.blocks] for stage in network.layers]  # type: ignore[union-attr]
    in_turns = all(shift == network.window // 2 * (i % 2) for shifts in stages for i, shift in enumerate(shifts))
    if network.patch_embed.proj.out_channels != width or not in_turns:
        return None
    heads = tuple(width * 2**i // network.head_width for i in range(4))
    return (
        "from timm.models.swin_transformer import SwinTransformer\n"
        f"model = SwinTransformer(patch_size={network.patch}, window_size={network.window}, embed_dim={width}, "
        f"depths={tuple(map(len, stages))}, num_heads={heads}, always_partition=True, strict_img_size=False, "
        "drop_path_rate=0, num_classes=0)"
    )


def _columns_first(x: Tensor) -> Tensor:
    """Return x [..., 4D] with the four neighbours in timm's order, by column and then by row."""
    return rearrange(x, "... (row column d) -> ... (column row d)", row=2, column=2)
