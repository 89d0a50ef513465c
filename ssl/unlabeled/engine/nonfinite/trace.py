"""Finds where a pass through a network first gives a NaN or an infinity: in which module, forward or backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unlabeled.engine.nonfinite.tally import Tally, all_finite, rows_of, tally, tensors_of
from unlabeled.ops.frozen import Frozen


@dataclass(frozen=True)
class Origin:
    """Where non-finite values began.

    module: dotted name, "" for the method itself. kind: its class. own_code: the module has parts, and its own code
    gave the values, not one of them. call: which of the module's calls, from 1. values: what is told of its input,
    parameters and output (backward: gradients), by name. rows: of the `row_count` of the output, in which they are;
    none if they are in all. next_module: the one that was to be called with them. operation: backward, as torch calls
    it. parameter: backward, whose gradient it is.
    """

    module: str
    kind: str
    own_code: bool
    call: int = 1
    values: Mapping[str, Tally] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    row_count: int = 0
    next_module: str = ""
    operation: str = ""
    parameter: str = ""


class Trace:
    """Watches the passes of a method while it is `attached`. forward, backward: where values first were not finite."""

    def __init__(self, method: nn.Module) -> None:
        self.names = dict(_modules(method))
        self.parameters = {id(p): name for name, p in method.named_parameters()}
        self.forward: Origin | None = None
        self.backward: Origin | None = None
        self._calls: dict[nn.Module, int] = {}
        self._open: list[nn.Module] = []  # modules that are at work, the innermost last
        self._nodes: dict[Any, nn.Module] = {}  # node of the autograd graph -> the module whose code has made it
        self._done = True

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch what happens inside."""
        with ExitStack() as hooks:
            for module in self.names:
                for handle in (module.register_forward_pre_hook(self._enter, with_kwargs=True),
                               module.register_forward_hook(self._leave, with_kwargs=True)):
                    hooks.callback(handle.remove)
            yield

    def begin(self) -> None:
        """Begin a forward pass: what modules do in a backward pass, such as computing activations again, is not told.
        """
        self._done = False

    def watch_backward(self) -> None:
        """End a forward pass, and look at every gradient of the backward pass to come."""
        self._done = True
        for node, module in self._nodes.items():
            node.register_hook(self._looking(node, module))
        self._nodes = {}

    # ---- forward

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._done:
            return
        self._calls[module] = self._calls.get(module, 0) + 1
        if self._open:
            self._claim((args, kwargs), self._open[-1])
            if self.forward is None and not _finite((args, kwargs)):
                given = (*args, *kwargs.values())
                self._found(self._open[-1], (), given, next_module=self.names[module])
        self._open.append(module)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._done:
            return
        while self._open and self._open.pop() is not module:
            pass
        self._claim(output, module)
        if self.forward is None and not _finite(output):
            self._found(module, (*args, *kwargs.values()), output)

    def _found(self, module: nn.Module, inputs: tuple[Any, ...], output: Any, next_module: str = "") -> None:
        values = {f"input {name}".strip(): tally(x) for name, x in tensors_of(_unwrapped(inputs))}
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        values |= {f"parameter {name}": tally(p) for name, p in own if p.is_floating_point()}
        bad = [(name, x) for name, x in tensors_of(_unwrapped(output)) if not all_finite(x)]
        values |= {f"output {name}".strip(): tally(x) for name, x in bad}
        rows = rows_of(bad[0][1]) if bad else ((), 0)
        self.forward = Origin(self.names[module], type(module).__name__, next(module.children(), None) is not None,
                              self._calls.get(module, 1), values, *rows, next_module)

    # ---- backward

    def _claim(self, values: Any, module: nn.Module) -> None:
        """Note that what leads to these tensors, as far as nobody has claimed it, was computed by `module`."""
        waiting = [x.grad_fn for _, x in tensors_of(values) if x.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in self._nodes:
                continue
            self._nodes[node] = module
            waiting += [before for before, _ in node.next_functions if before is not None]

    def _looking(self, node: Any, module: nn.Module) -> Any:
        def look(going_out: tuple[Tensor | None, ...], coming_in: tuple[Tensor | None, ...]) -> None:
            if self.backward is not None or _finite(going_out):
                return
            bad = next(i for i, grad in enumerate(going_out) if grad is not None and not all_finite(grad))
            values = {f"gradient coming in {name}": tally(x) for name, x in tensors_of(coming_in)}
            values |= {f"gradient going out {name}": tally(x) for name, x in tensors_of(going_out)}
            self.backward = Origin(
                self.names[module], type(module).__name__, next(module.children(), None) is not None,
                self._calls.get(module, 1), values, *rows_of(going_out[bad]), operation=node.name(),
                parameter=self._parameter(node, bad),
            )  # fmt: skip
        return look

    def _parameter(self, node: Any, place: int) -> str:
        """Return the name of the parameter to which a gradient goes, also by way of a cast; "" if it goes elsewhere."""
        below = node.next_functions[place][0] if place < len(node.next_functions) else None
        for _ in range(2):
            if below is None:
                return ""
            if hasattr(below, "variable"):
                return self.parameters.get(id(below.variable), "")
            below = below.next_functions[0][0] if len(below.next_functions) == 1 else None
        return ""


def _modules(method: nn.Module, prefix: str = "") -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules with their names, also those that are no sub-modules because they are frozen."""
    for name, module in method.named_modules():
        yield module, f"{prefix}{name}"
        if isinstance(module, Frozen):
            below = f"{prefix}{name}.network"
            for frozen, inner in _modules(module.network):
                yield frozen, f"{below}.{inner}" if inner else below


def _finite(values: Any) -> bool:
    return all(all_finite(x) for _, x in tensors_of(values))


def _unwrapped(values: Any) -> Any:
    """Return the only element of a sequence of one, so that it needs no number."""
    return values[0] if isinstance(values, list | tuple) and len(values) == 1 else values
