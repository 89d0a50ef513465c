"""What holds for every method on several processes, which see different data: together they are one process."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from processes import run_processes
from tiny import Case, Tiny, differing, snapshot, tiny_run

from unlabeled.ops.distributed import rank, world

TOLERANCE = {torch.float32: (1e-6, 1e-2), torch.float64: (1e-10, 1e-10)}  # of the loss, of every gradient's norm
STATE_TOLERANCE = 1e-7  # in float64, of a tensor's norm: three updates make rounding larger

VIEWED = 8  # updates whose draws are compared
TRAINED = 3

# where channels come last, torch's BatchNorm adds up in float32 on a CPU, which puts the loss of one process 1.3e-6 off
# its value in float64; in the other layout, and in our synchronised one, it adds up in float64 and is within 1e-7
LAYOUT = ["train.channels_last=false"]

Arrays = dict[str, np.ndarray]


@dataclass
class Part:
    """What one process finds: views of several updates, loss and gradients of the first one, the state after three.

    dropped: whether a further update was dropped, without a trace, for one of the processes had NaN.
    """

    views: list[Arrays]
    loss: float
    grads: Arrays
    state: Arrays
    dropped: bool


def on_rank(number: int, case: Case) -> dict[torch.dtype, Part]:
    """Return the part of this process, in the case's dtype, and where they are no more than two in float32 too."""
    dtypes = (case.dtype,) if world() > 2 else (torch.float32, case.dtype)
    return {dtype: _part(case, dtype) for dtype in dict.fromkeys(dtypes)}


def _part(case: Case, dtype: torch.dtype) -> Part:
    tiny = tiny_run(case.read([*LAYOUT, "train.nonfinite=skip"]), dtype)
    before = snapshot(tiny)
    views = [_arrays(tiny.updater.views(u, 0, tiny.micros(u)[0])) for u in range(VIEWED)]
    _, loss, grads = tiny.first_gradients()
    grads = {name: x.clone() for name, x in grads.items()}
    tiny.updater.method.load_state_dict(before)
    tiny.updater.optimizer.zero_grad(set_to_none=True)
    tiny.train(0, TRAINED)
    state = snapshot(tiny)
    return Part(views, float(loss), _arrays(grads), _arrays(state), _is_dropped_without_trace(tiny, state))


def _is_dropped_without_trace(tiny: Tiny, before: dict[str, torch.Tensor]) -> bool:
    views, poison = tiny.updater.views, math.nan if rank() == world() - 1 else 1.0
    tiny.updater.views = lambda *place: {  # type: ignore[method-assign]
        name: x * poison if x.is_floating_point() else x for name, x in views(*place).items()
    }
    outcome = tiny.updater.update(TRAINED, tiny.micros(TRAINED), [0])
    return outcome.dropped and not differing(before, snapshot(tiny))


def _arrays(tensors: dict[str, torch.Tensor]) -> Arrays:
    return {name: x.numpy() for name, x in tensors.items()}


@functools.lru_cache(maxsize=4)
def together(case: Case, processes: int) -> list[dict[torch.dtype, Part]]:
    """Return what every process finds, in rank order; a single one is this process."""
    return [on_rank(0, case)] if processes == 1 else run_processes(processes, on_rank, case)


def compared(case: Case) -> Iterator[tuple[torch.dtype, Part, list[Part]]]:
    """Yield one process with the whole batch, and several with a share each, for every number of them and dtype."""
    for processes in case.processes:
        several, (whole,) = together(case, processes), together(case, 1)
        for dtype in several[0]:
            yield dtype, whole[dtype], [parts[dtype] for parts in several]


def draws_do_not_depend_on_the_processes(case: Case) -> None:
    for _, whole, parts in compared(case):
        for update, views in enumerate(whole.views):
            for name, expected in views.items():
                got = np.concatenate([part.views[update][name] for part in parts])
                same = np.array_equal(got, expected, equal_nan=got.dtype.kind == "f")
                assert same, f"view {name} of update {update} depends on the number of processes"


def processes_with_different_data_are_one_process(case: Case) -> None:
    for dtype, whole, parts in compared(case):
        loss_tolerance, grad_tolerance = TOLERANCE[dtype]
        off = abs(sum(part.loss for part in parts) / len(parts) - whole.loss)
        assert off <= loss_tolerance * max(1.0, abs(whole.loss)), f"loss: off by {off:.2g}"
        largest = max(_norm(grad) for grad in whole.grads.values())
        for part in parts:
            for name, grad in whole.grads.items():
                error = _norm(part.grads[name] - grad)
                # a gradient that is zero in theory (a bias before BatchNorm) is rounding: compared with the largest one
                allowed = grad_tolerance * max(_norm(grad), 1e-4 * largest)
                assert error <= allowed, f"gradient of {name}: off by {error:.2g}, norm {_norm(grad):.2g}"


def processes_hold_the_state_of_one_process(case: Case) -> None:
    for dtype, whole, parts in compared(case):
        for name, expected in whole.state.items():
            first = parts[0].state[name]
            assert all(np.array_equal(part.state[name], first) for part in parts), f"{name} differs between ranks"
            if dtype == torch.float64:
                error, size = _norm(first - expected), _norm(expected)
                # a bias before BatchNorm stays at rounding
                assert error <= STATE_TOLERANCE * max(size, 1e-6), f"{name}: off by {error:.2g}, norm {size:.2g}"


def an_update_that_one_process_drops_leaves_no_trace_on_any(case: Case) -> None:
    for _, _, parts in compared(case):
        assert all(part.dropped for part in parts)


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


RULES = (
    draws_do_not_depend_on_the_processes,
    processes_with_different_data_are_one_process,
    processes_hold_the_state_of_one_process,
    an_update_that_one_process_drops_leaves_no_trace_on_any,
)
