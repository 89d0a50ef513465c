"""Processes, device and precision, through Accelerate."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from unlabeled.augment import photometric
from unlabeled.config.recipe import Precision, Train
from unlabeled.engine.nodes.meeting import node_name, reach
from unlabeled.engine.watch import PATIENCE, group_timeout, watch
from unlabeled.errors import NodeError, UserError
from unlabeled.ops.machine.compiler import compiler_problem
from unlabeled.ops.machine.memory import keep_freed_memory
from unlabeled.ops.precision import Resolved

MEETING = 300.0  # seconds that the first process may start later than the others
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
HOW = (
    "accelerate launch --multi_gpu --num_processes {n} pretrain.py RECIPE (on CPUs: ACCELERATE_USE_CPU=true before it)"
)


def join() -> PartialState:
    """Join the other processes of the launch, on CPUs if it says so."""
    _stay_on_this_machine()
    _expect_the_others()
    state = PartialState(cpu=on_cpu(), timeout=group_timeout(PATIENCE))
    watch()
    return state


def pick_device(accelerator: Accelerator | None = None) -> torch.device:
    """Join the processes of the launch, if any, and return this one's device."""
    device: torch.device = (accelerator or join()).device
    if device.type == "cpu":
        keep_freed_memory()
    return device


def start(train: Train) -> Accelerator:
    """Join the other processes of the launch and set the precision.

    Raises UserError if fewer processes came together than the launcher started or `train.processes` asks for, if the
    first one cannot be reached, if a node has fewer GPUs than processes, and for fp16 without a GPU.
    """
    _end_with_the_launcher()
    _stay_on_this_machine()
    _expect_the_others()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, with the first product on a GPU
    cuda = torch.cuda.is_available() and not on_cpu()
    precision = pick_precision(train.precision, "cuda" if cuda else "cpu", "train.precision")
    # buffers stay as each rank computed them; the engine broadcasts what is not synchronised. The option has a new name
    # in new versions of torch, which say so for every process
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    AcceleratorState._reset_state()  # a process may train several times, in different precisions
    group = InitProcessGroupKwargs(timeout=group_timeout(train.patience))
    mixed = "no" if precision == "fp32" else precision
    accelerator = Accelerator(mixed_precision=mixed, kwargs_handlers=[ddp, group])
    watch(train.patience)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    for count, who in ((launched, "the launcher started"), (train.processes, "train.processes asks for")):
        if count and count != accelerator.num_processes:
            raise UserError(
                f"{who} {count} processes, but {accelerator.num_processes} came together. Start them with: "
                + HOW.format(n=count)
            )
    torch.use_deterministic_algorithms(train.deterministic)  # off too: a process may train several times
    torch.backends.cudnn.benchmark = cuda and not train.deterministic
    if not cuda:
        keep_freed_memory()
    _compile(train.compile, accelerator)
    return accelerator


def pick_precision(wanted: Precision, device: str, key: str = "precision") -> Resolved:
    """Return what `wanted` means on a kind of device: auto is bf16 on GPUs and on CPUs with AMX, else fp32.

    key: the setting that it was given by. Raises UserError for fp16 without a GPU.
    """
    if wanted == "fp16" and device != "cuda":
        raise UserError(f"{key} fp16 needs a GPU; use bf16 or fp32 here")
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cuda" or (device == "cpu" and _has_amx()) else "fp32"


def _compile(wanted: bool, accelerator: Accelerator) -> None:
    """Compile the colour operations too, or nothing at all, with one line, where no compiler works."""
    # on a CPU they gain nothing by it (measured), and each takes seconds to compile
    photometric.compile_operations(wanted and accelerator.device.type == "cuda")
    if not wanted:
        return
    problem = compiler_problem(accelerator.device)
    torch.compiler.set_stance("force_eager" if problem else "default")
    if problem and accelerator.is_main_process:
        print(f"train.compile: going on without it, torch.compile does not work here: {problem}", flush=True)


def _end_with_the_launcher() -> None:
    """Let the system send TERM to this process when its launcher dies, killed perhaps: it saves and ends.

    torchrun puts its processes into sessions of their own, so that they would otherwise train on, unseen.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stay_on_this_machine() -> None:
    """Let gloo listen on the loopback interface where the launch has no process elsewhere; what is set already stays.

    Otherwise it listens on the address of the host's name.
    """
    here, everywhere = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]  # Linux, macOS
    if here is not None and here == everywhere and names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def _expect_the_others() -> None:
    """Refuse what torch would say late and in other words: GPUs that are missing, a first process out of reach."""
    if not on_cpu():
        refuse_few_gpus(torch.cuda.device_count())
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address and port and int(os.environ.get("RANK", "0")) > 0 and not dist.is_initialized():
        reach(address, int(port), MEETING)


def refuse_few_gpus(visible: int) -> None:
    """Raise UserError, once per node and naming it, if fewer GPUs are visible here than there are processes.

    A machine without any has none to miss, unless SLURM has given some.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if visible < processes and (visible or "SLURM_GPUS_ON_NODE" in os.environ):
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        raise (NodeError if first else UserError)(
            f"{node_name()} shows {visible} GPUs, but its processes ({processes}) need one each: look at nvidia-smi "
            "and CUDA_VISIBLE_DEVICES there; with SLURM ask for --gres=gpu:N, not for --gpus-per-task"
        )


def _has_amx() -> bool:
    """Return whether the processor multiplies bfloat16 matrices itself (AMX): elsewhere on CPUs bf16 is slower."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
    except OSError:  # no such file on this system
        return False


def on_cpu() -> bool:
    """Return whether the launch says that its processes use the CPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
