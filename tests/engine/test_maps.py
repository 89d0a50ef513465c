"""The last map of timm's networks, whatever their memory order, and what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from unlabeled.engine.exports.networks import Inside, inner
from unlabeled.engine.maps import last_map
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input

CPU = torch.device("cpu")


def tiny(name: str, size: int, gives: str = "vector") -> Export:
    options = {
        "resnet18": {},
        "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)},
        "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
        "vit_tiny_patch16_224": {"depth": 1},
    }[name]
    network = timm.create_model(name, num_classes=0, **options)
    return Export(lambda: network.eval(), gives, Input(size))


@pytest.mark.parametrize(("name", "size", "shape"), [
    ("resnet18", 64, (512, 2, 2)),
    ("convnext_atto", 96, (64, 3, 3)),
    ("swin_tiny_patch4_window7_224", 224, (64, 7, 7)),
])  # fmt: skip
def test_maps_have_their_channels_first(name, size, shape):
    export = tiny(name, size)
    network, found = last_map("backbone", export, CPU)
    assert found == shape
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        given = export.build().forward_features(x)
        last = name.startswith("swin")
        assert torch.equal(network(x), given.permute(0, 3, 1, 2) if last else given)


def test_an_inner_block_gives_its_own_map():
    network, shape = last_map("backbone.layer2", inner(tiny("resnet18", 64), Inside(None, "layer2")), CPU)
    assert shape == (128, 8, 8) and network(torch.zeros(1, 3, 64, 64)).shape == (1, 128, 8, 8)


def test_what_gives_no_map_is_refused():
    with pytest.raises(UserError, match=r"export 'head' gives logits and no map; choose one that does"):
        last_map("head", Export(nn.Flatten, "logits", Input(8)), CPU)
    with pytest.raises(UserError, match="no map"):
        last_map("pooled", Export(nn.Flatten, "vector", Input(8)), CPU)
    with pytest.raises(UserError, match="map"):
        last_map("backbone", tiny("vit_tiny_patch16_224", 224), CPU)
    with pytest.raises(UserError, match=r"takes no images of 96 x 96: .*224"):
        last_map("backbone", tiny("swin_tiny_patch4_window7_224", 96), CPU)
    with pytest.raises(UserError, match=r"1 x 1 cells for images of 32 x 32, but 2 x 2 are the least.*size=128"):
        last_map("backbone", tiny("resnet18", 32), CPU)
