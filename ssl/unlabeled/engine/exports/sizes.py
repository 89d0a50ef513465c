"""Plain networks of chosen sizes, taken out of an elastic one: what each costs, which is nearest, and their files."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from unlabeled.backbones.build import loading_lines
from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.sizes import Size
from unlabeled.backbones.elastic.timm_names import timm_agrees, timm_lines, timm_state
from unlabeled.config.recipe import Backbone
from unlabeled.engine.exports.networks import weights_file
from unlabeled.ops.machine.files import write_atomically


class Cost(NamedTuple):
    """What a network costs: numbers that are trained, and flops of one image.

    flops: multiply-adds of matrix products and convolutions, which the literature calls FLOPs; attention counts.
    """

    params: int
    flops: int


def cost(network: ElasticNetwork, size: Size, side: int) -> Cost:
    """Return the cost of a size on images of `side` pixels, of shapes alone: `network` is on the meta device."""
    with torch.device("meta"), torch.no_grad():
        plain = network.part(size)
        with FlopCounterMode(display=False) as counter:
            plain(torch.empty(1, 3, side, side))
    return Cost(sum(p.numel() for p in plain.parameters()), counter.get_total_flops() // 2)


def costs(network: ElasticNetwork, side: int) -> dict[Size, Cost]:
    """Return the cost of every size of a network on the meta device, on images of `side` pixels.

    Counted are the shallowest network of every width and, for each of its stages, the one that is deepest there alone:
    all further blocks of a stage cost the same.
    """
    grid = network.grid
    low = tuple(map(min, zip(*grid.depths, strict=True)))
    high = tuple(map(max, zip(*grid.depths, strict=True)))
    corners = [(*low[:stage], most, *low[stage + 1 :]) for stage, most in enumerate(high)]
    if not {low, *corners} <= set(grid.depths):
        return {size: cost(network, size, side) for size in grid.sizes}
    found: dict[Size, Cost] = {}
    for width in grid.widths:
        least = cost(network, Size(width, low), side)
        block = [_share(least, cost(network, Size(width, corner), side), most - few) if most > few else Cost(0, 0)
                 for corner, most, few in zip(corners, high, low, strict=True)]
        for depth in grid.depths:
            more = [count - few for count, few in zip(depth, low, strict=True)]
            found[Size(width, depth)] = Cost(*(
                start + sum(count * each for count, each in zip(more, per, strict=True))
                for start, per in zip(least, zip(*block, strict=True), strict=True)))
    return found


def _share(least: Cost, most: Cost, blocks: int) -> Cost:
    return Cost((most.params - least.params) // blocks, (most.flops - least.flops) // blocks)


def nearest(known: Mapping[Size, Cost], measure: Literal["params", "flops"], value: float) -> Size:
    """Return the size whose cost is nearest to `value`; of equally near ones the narrowest."""
    return min(known, key=lambda size: abs(getattr(known[size], measure) - value))


def on_meta(network: ElasticNetwork) -> ElasticNetwork:
    """Return a copy without weights, for `cost`."""
    return copy.deepcopy(network).to("meta")


def write_network(network: ElasticNetwork, backbone: Backbone, side: int, about: Mapping[str, Any], file: Path) -> str:
    """Write the weights of a plain network and, beside them, a JSON file; return the Python lines that load them.

    The weights have timm's names if a class of timm's computes the same on images of `side` pixels. backbone: what
    builds the network otherwise. file: .safetensors. about: what the JSON file says besides its hash, whose names these
    are and the lines. Raises UserError if the disk is full or not writable.
    """
    built = timm_lines(network) if timm_agrees(network, side) else None
    content = weights_file(network.state_dict() if built is None else timm_state(network))
    lines = loading_lines(backbone, str(file)) if built is None else (
        f'{built}\nfrom safetensors.torch import load_file\nmodel.load_state_dict(load_file("{file}"))')
    stated = {**about, "names": "unlabeled" if built is None else "timm", "load": lines.splitlines(),
              "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(file, lambda stream: stream.write(content))
    write_atomically(file.with_suffix(".json"), lambda stream: stream.write(json.dumps(stated, indent=1).encode()))
    return lines
