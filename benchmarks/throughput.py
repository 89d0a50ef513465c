"""Training speed: the model alone on ready tensors, the data alone, and both together, each as a share of the limit."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.peer import Lightly, installed
from benchmarks.workload import Alone, Options, Product
from unlabeled.errors import UserError
from unlabeled.ops.distributed import rank, world

QUESTION = "how much of the model's own speed is left once data, augmentation and the training loop come with it?"
NAMES = {32: "ResNet-18, 32 px, images in memory", 224: "ResNet-50, 224 px, JPEG shards"}
END_TO_END = {"fp32": 1.08, "bf16": 1.15}  # bars on a CPU: time over that of the model alone
GPU_SHARE = 0.92  # bar on a GPU: the model alone over end to end


def main(words: list[str] | None = None) -> int:
    """Run the workloads that the command line asks for."""
    given = _arguments(words)
    if not torch.cuda.is_available():  # there it is wall time, and threads cut the crops while the GPU computes
        measure.one_thread()
    report = measure.Report(
        "throughput", "Training throughput", f"{QUESTION} SimCLR with two views; `limit` is the model alone.",
        packages=[given.peer] if given.peer else [],
    )
    try:
        if given.peer:
            installed()
        for size in given.size:
            for precision in given.precision:
                _workload(report, given, size, precision)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if rank() == 0:
        report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments("throughput", QUESTION, repeats=5)
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", type=int, nargs="+", choices=[32, 224], default=[32, 224])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"],
                        default=["fp32", "bf16"] if cuda or measure.native_bf16() else ["fp32"],
                        help="default: fp32, and bf16 on a GPU or a CPU that has it")
    parser.add_argument("--batch", type=int, help="images per process and step; default 64 at 32 px, 8 at 224 px")
    parser.add_argument("--steps", type=int, default=1, help="steps per round (default 1; on a GPU take 50)")
    parser.add_argument("--images", type=int, default=512, help="photographs to make (default 512)")
    parser.add_argument("--card", default="", help="a data card instead of made photographs; then also --root")
    parser.add_argument("--root", help="folder of that card's data")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0 on a CPU, whose time is counted")
    parser.add_argument("--compile", action="store_true", help="train.compile")
    parser.add_argument("--peer", choices=["lightly"], help="do the same work through this package too")
    given = parser.parse_args(words)
    if given.quick:
        given.size, given.repeats, given.batch, given.images = given.size[:1], 1, 8, 32
    return given


def _workload(report: measure.Report, given: argparse.Namespace, size: int, precision: str) -> None:
    options = Options(size, (given.batch or {32: 64, 224: 8}[size]) * world(), precision, given.compile, given.workers,
                      given.card, given.root, given.images, tiny=given.quick)
    with tempfile.TemporaryDirectory() as folder:
        product = Product(options, Path(folder))
        device = product.accelerator.device
        for _ in range(3):  # compiles, and settles the allocator
            product.step()
        memory = _memory(device)
        alone = Alone(product)
        loaders: dict[str, Product | Lightly] = {"data": product, "end to end": product}
        calls: dict[str, Callable[[], object]] = {
            "limit": alone.step, "data": product.views, "end to end": product.step}
        if given.peer:
            peer = Lightly(product, options)
            loaders |= {"lightly, data": peer, "lightly, end to end": peer}
            calls |= {"lightly, data": peer.views, "lightly, end to end": peer.step}

        def prepare(name: str) -> None:
            """Stop the loader processes of the others, and use up what this one's have made in advance."""
            if options.workers:
                for loader in loaders.values():
                    if loader is not loaders.get(name):
                        loader.pause()
                for _ in range(2 * options.workers + 2 if name in loaders else 0):
                    calls[name]()

        rounds = {name: _several(call, given.steps) for name, call in calls.items()}
        seconds = measure.take_turns(rounds, given.repeats, device, prepare)
        product.close()
    _tell(report, options, seconds, given.steps, device, memory)


def _several(call: Callable[[], object], steps: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(steps):
            call()

    return run


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of memory"


def _tell(report: measure.Report, options: Options, seconds: dict[str, list[float]], steps: int, device: torch.device,
          memory: str) -> None:
    limit, rows = seconds["limit"], []
    for name, taken in seconds.items():
        share = measure.ratio(taken, limit)
        at_most = 1 / GPU_SHARE if device.type == "cuda" else END_TO_END[options.precision]
        rows.append([
            name, f"{measure.median(taken) / steps:.3g} ± {measure.spread(taken):.0%}",
            f"{options.batch * steps / measure.median(taken):.4g}", f"{share:.3f}",
            measure.bar(share, at_most=round(at_most, 3)) if name == "end to end" else "",
        ])
    clock = "wall s" if device.type == "cuda" else "CPU s"
    report.say(f"**{NAMES[options.size]}, {options.precision}**, batch {options.batch}"
               f"{', compiled' if options.compile else ''}, {memory}")
    report.table(["", f"{clock} per step ± quartiles", "images/s", "time / limit", "bar"], rows)
    if "lightly, end to end" in seconds:
        ratio = measure.ratio(seconds["lightly, end to end"], seconds["end to end"])
        report.say(f"lightly takes {ratio:.2f} times as long end to end, "
                   f"{measure.ratio(seconds['lightly, data'], seconds['data']):.1f} times for the data.")


if __name__ == "__main__":
    sys.exit(main())
