"""Random depth and dropout of networks: what can be drawn for the global batch is, and all else is refused.

A network is tried without computing anything (torch's meta device), which shows every operation that draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from unlabeled.backbones.sizes import input_shape
from unlabeled.errors import UserError
from unlabeled.ops.drop_path import FromGlobalBatch, HeadDropout, Rows, adopt, convert

_IMAGES, _MORE = 23, 29  # of a trial: primes, so that few other dimensions are a multiple of them

Shapes = dict[int, list[tuple[int, ...]]]  # that every converted layer met, by its identity
_ATTENTION = ("scaled_dot_product", "_fused_sdp", "multi_head")


def draw_for_the_global_batch(method: nn.Module, networks: Iterable[nn.Module], sizes: Iterable[int], rows: Rows,
                              frames: int | None = None) -> None:
    """Convert all layers of `method` that drop at random (`ops.drop_path`), and those in place of a classifier.

    networks: the backbones in it, for square images of all `sizes` in pixels, or clips of so many `frames`; each is
    tried. Raises UserError, with the cure, for one that draws in a way that depends on the number of processes.
    """
    convert(method, rows)
    for name, module in method.named_modules():
        _refuse_attention(name, module)
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p and not isinstance(module, FromGlobalBatch):
            raise UserError(f"'{name}' ({type(module).__name__}) is a kind of dropout of its own, whose masks would "
                            "depend on the number of processes: use torch's own class, or set its rate to 0")
    inside = set(method.modules())
    for network in networks:
        if network in inside:  # a frozen one is in evaluation mode
            for size in sizes:
                _try(network, input_shape(size, frames), rows)


def _refuse_attention(name: str, module: nn.Module) -> None:
    """Raise UserError for attention that drops weights inside one fused operation, and for recurrent layers' dropout.

    They draw on their own, and the operation takes no mask.
    """
    rate = getattr(module, "attn_drop_p", None) or getattr(getattr(module, "attn_drop", None), "p", 0)
    if rate and getattr(module, "fused_attn", False):
        raise UserError(f"'{name}' ({type(module).__name__}) drops attention weights inside a fused operation, whose "
                        "masks would depend on the number of processes: set attn_drop_rate of backbone.options to 0, "
                        "or start with TIMM_FUSED_ATTN=0 in the environment")
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout:
        raise UserError(f"'{name}' ({type(module).__name__}) drops at random by itself, so that masks would depend on "
                        "the number of processes: set its dropout to 0, and put nn.Dropout behind it")


def _try(network: nn.Module, shape: tuple[int, ...], rows: Rows) -> None:
    drawing, shapes_met = _trial(network, shape)
    if "" in drawing and _take_over_head(network, rows):
        drawing, shapes_met = _trial(network, shape)
    for name, operation in drawing.items():
        where = f"module '{name}' ({type(network.get_submodule(name)).__name__})" if name else "own forward pass"
        cure = "attn_drop_rate" if operation.startswith(_ATTENTION) else "drop rates"
        raise UserError(f"the network's {where} draws at random by itself ({operation}), which would depend on the "
                        f"number of processes: leave its {cure} out of backbone.options, or choose another network")
    odd = any(shape[0] % _IMAGES for shapes in shapes_met.values() for shape in shapes)
    again = _trial(network, shape, _MORE)[1] if odd else {}
    layers = {id(module): (name, module) for name, module in network.named_modules()}
    for identity, shapes in shapes_met.items():
        name, layer = layers[identity]
        assert isinstance(layer, FromGlobalBatch)
        if shapes == again.get(identity):
            inner = {0}  # of the network, for all images alike
        else:
            inner = {-1 if shape[0] % _IMAGES else shape[0] // _IMAGES for shape in shapes}
        inner |= {layer.inner} if "inner" in vars(layer) else set()
        if len(inner) > 1 or -1 in inner:
            what = "rows that are no images" if -1 in inner else f"{sorted(inner)} rows per image"
            raise UserError(f"the network's '{name}' drops at random among {what}: its masks cannot be drawn per "
                            "image; leave its drop rate out of backbone.options, or use crops of one size")
        layer.inner = inner.pop()


def _take_over_head(network: nn.Module, rows: Rows) -> bool:
    """Return whether the dropout before a classifier, which timm's networks do by a function, is now a layer's.

    The classifier must be none: then what is dropped before it is dropped in its place.
    """
    rate = getattr(network, "drop_rate", 0)
    try:
        classifier = network.get_classifier()  # type: ignore[operator]
    except AttributeError:  # timm's SHViT does not expect to have none
        return False
    if not rate or type(classifier) is not nn.Identity:
        return False
    classifier.p = float(rate)  # type: ignore[assignment]
    adopt(classifier, HeadDropout, rows)
    network.drop_rate = 0.0  # type: ignore[assignment]
    return True


def _trial(network: nn.Module, shape: tuple[int, ...], images: int = _IMAGES) -> tuple[dict[str, str], Shapes]:
    """Return the modules that draw at random and by which operation, and the shapes that every converted layer met.

    Both are empty where the network cannot be tried without computing.
    """
    names = {id(module): name for name, module in network.named_modules()}
    tensors = [*network.named_parameters(), *network.named_buffers()]
    blank = {name: torch.empty_like(x, device="meta") for name, x in tensors}
    like = next(network.parameters(), torch.zeros(()))
    x = torch.empty(images, *shape, dtype=like.dtype, device="meta")
    watch = _Watch(names)
    with watch.entered(), torch.no_grad(), _recording() as shapes_met:
        try:
            functional_call(network, blank, (x,))
        except (NotImplementedError, RuntimeError):
            return watch.drawing, {}
    return watch.drawing, shapes_met


@contextmanager
def _recording() -> Iterator[Shapes]:
    FromGlobalBatch.recorded = {}
    try:
        yield FromGlobalBatch.recorded
    finally:
        FromGlobalBatch.recorded = None


class _Watch(TorchDispatchMode):
    """Notes the operations that draw from torch's global generators, each with the innermost module of `names`."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.drawing: dict[str, str] = {}
        self._inside: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None and _drops(func, args,
                                                                                                       kwargs):
            self.drawing.setdefault(self._inside[-1] if self._inside else "", func.overloadpacket.__name__)
        return func(*args, **kwargs)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Watch, and follow which module is running."""
        def begin(module: nn.Module, inputs: Any) -> None:
            if id(module) in self.names:
                self._inside.append(self.names[id(module)])

        def end(module: nn.Module, inputs: Any, output: Any) -> None:
            if id(module) in self.names:
                self._inside.pop()

        handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


def _drops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation that may draw does: its probability, if it has one, is not 0."""
    values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    rates = [values[name] for name in ("p", "dropout_p", "dropout") if isinstance(values.get(name), float | int)]
    return not rates or any(rates)

