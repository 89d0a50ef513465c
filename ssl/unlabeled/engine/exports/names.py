"""Backbones under the names of other libraries; a file is read back in that library's own class before it is kept."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor, nn

from unlabeled.backbones import naming
from unlabeled.backbones.build import build_backbone, loading_lines
from unlabeled.config.base.objects import is_dotted
from unlabeled.config.recipe import Backbone
from unlabeled.engine.exports.preparation import preparing_lines
from unlabeled.engine.public.files import CONFIG
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input
from unlabeled.ops.machine.files import write_atomically

State = dict[str, Tensor]

_CLOSE = 1e-6  # of the largest feature; sums may be taken in another order
_DETECTRON2_DEPTHS = (18, 34, 50, 101, 152)


@dataclass(frozen=True)
class Form:
    """How one library reads weights.

    build: makes its own network, as the printed lines do. write: fills a file. read: takes the weights from it as these
    lines do. lines: what the user is told of the file. rename: gives a weight its name there.
    """

    name: str
    suffix: str
    build: Callable[[], nn.Module]
    write: Callable[[State, BinaryIO], object]
    read: Callable[[Path], State]
    lines: Callable[[Path], str]
    rename: Callable[[str], str] = str


def write_named(export: Export, backbone: Backbone, form: str, out: Path, classes: Sequence[str] | None = None) -> str:
    """Write the weights of an exported backbone to `out` as `form` names them; return the lines that load them.

    form: torchvision, timm or detectron2. A file for timm states its input in timm's words, and may be of a classifier,
    with the names of its `classes`. Raises UserError for a file name of another kind, or for a network that the
    library's class cannot hold or computes otherwise; nothing is written then.
    """
    network = export.build().cpu().float().eval()
    linear = getattr(network, "linear", None)
    if form == "timm" and export.gives == "logits" and isinstance(linear, nn.Linear):
        library = _timm_classifier(network.network, linear, backbone, export.input, classes)
    else:
        library = _FORMS[form](network, backbone, export.input)
    if out.suffix != library.suffix:
        raise UserError(f"--out {out}: a file for {form} ends in {library.suffix}")
    theirs = library.build().eval()
    state = {library.rename(name): value.detach().contiguous() for name, value in network.state_dict().items()}
    naming.refuse_other_shapes(state, theirs.state_dict(), library.name)
    trial = out.with_name(f".{out.name}.trial")
    try:
        write_atomically(trial, lambda file: library.write(state, file))
        theirs.load_state_dict(library.read(trial))
        apart = naming.largest_difference(network, theirs, export.input.size)
        if not apart <= _CLOSE:
            raise UserError(f"{library.name}'s network takes these weights, but its features are {apart:.1g} apart: "
                            "it computes otherwise than the one that was trained, so nothing was written")
        os.replace(trial, out)
    finally:
        trial.unlink(missing_ok=True)
    return library.lines(out)


def _torchvision(network: nn.Module, backbone: Backbone, image: Input) -> Form:
    shape = naming.shape_of(network)

    def lines(path: Path) -> str:
        loading = f'model.load_state_dict(torch.load("{path}"))'
        return f"{naming.torchvision_lines(shape)}\n{loading}\n\n{preparing_lines(image)}"

    return Form("torchvision", ".pth", partial(naming.torchvision_network, shape), torch.save, torch.load, lines)


def _timm(network: nn.Module, backbone: Backbone, image: Input, about: Mapping[str, Any] | None = None) -> Form:
    from safetensors.torch import load_file

    own = is_dotted(backbone.name)
    if own or "unlabeled" in loading_lines(backbone, ""):
        where = "one of the recipe's own" if own else "defined in this package"
        raise UserError(f"timm has no network like this {backbone.name}, which is {where}: "
                        "RUN/export/backbone.safetensors holds its weights")

    def lines(path: Path) -> str:
        return f"{loading_lines(backbone, str(path))}\n\n{preparing_lines(image)}"

    def write(state: State, file: BinaryIO) -> None:
        file.write(save(state, metadata={CONFIG: json.dumps(_timm_config(backbone, image) | dict(about or {}))}))

    return Form("timm", ".safetensors", partial(build_backbone, backbone), write, load_file, lines)


def _timm_config(backbone: Backbone, image: Input) -> dict[str, Any]:
    """Return what a file says of its network, as timm's configuration files say it."""
    card = {"input_size": [3, image.size, image.size], "mean": image.mean or [0, 0, 0], "std": image.std or [1, 1, 1]}
    return {"architecture": backbone.name, "num_classes": 0, "pretrained_cfg": card}


def _timm_classifier(network: Any, linear: nn.Linear, backbone: Backbone, image: Input, classes: Sequence[str] | None,
                     ) -> Form:
    """Return timm's form of a backbone with a linear classifier."""
    count = linear.out_features
    about = {"num_classes": count, **({"label_names": list(classes)} if classes else {})}
    plain = _timm(network, backbone, image, about)

    def build() -> nn.Module:
        whole: Any = plain.build()
        whole.reset_classifier(count)
        return whole

    whole: Any = build()
    place = next(name for name, module in whole.named_modules() if module is whole.get_classifier())
    return replace(
        plain, build=build, rename=lambda name: re.sub(r"^linear\.", f"{place}.", name.removeprefix("network.")),
        lines=lambda path: plain.lines(path).replace("num_classes=0", f"num_classes={count}", 1),
    )


def _detectron2(network: nn.Module, backbone: Backbone, image: Input) -> Form:
    """Return detectron2's form; its ResNet is tried as torchvision's, which is the same network by other names."""
    shape = naming.shape_of(network)
    if shape.depth not in _DETECTRON2_DEPTHS:
        raise UserError(f"detectron2 has no ResNet of depth {shape.depth}; it has {_DETECTRON2_DEPTHS}")

    def write(state: State, file: BinaryIO) -> None:
        model = {naming.to_detectron2(name): value.numpy() for name, value in state.items()}
        pickle.dump({"model": model, "__author__": "unlabeled", "matching_heuristics": True}, file)

    def read(path: Path) -> State:
        model = pickle.loads(path.read_bytes())["model"]
        return {naming.from_detectron2(name): torch.as_tensor(value) for name, value in model.items()}

    def lines(path: Path) -> str:
        return _detectron2_config(shape, image, path)

    return Form("detectron2", ".pkl", partial(naming.torchvision_network, shape), write, read, lines)


_FORMS = {"torchvision": _torchvision, "timm": _timm, "detectron2": _detectron2}


def _detectron2_config(shape: naming.Shape, image: Input, path: Path) -> str:
    """Return what a detectron2 configuration must say for the file: its defaults are other images and other strides."""
    mean = [round(255 * value, 3) for value in image.mean or (0, 0, 0)]
    std = [round(255 * value, 3) for value in image.std or (1, 1, 1)]
    kind = {"DEPTH": shape.depth, "STRIDE_IN_1X1": False, "NORM": "SyncBN"}
    if shape.block == "BasicBlock":
        kind["RES2_OUT_CHANNELS"] = 64
    elif (shape.groups, shape.width) != (1, 64):
        kind |= {"NUM_GROUPS": shape.groups, "WIDTH_PER_GROUP": shape.width}
    resnets = ", ".join(f"{key}: {value}" for key, value in kind.items())
    return (
        f"MODEL:\n  WEIGHTS: {path}\n  PIXEL_MEAN: {mean}\n  PIXEL_STD: {std}\n  RESNETS: {{{resnets}}}\n"
        "  BACKBONE: {FREEZE_AT: 0}\nINPUT: {FORMAT: RGB}"
    )
