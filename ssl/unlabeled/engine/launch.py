"""Processes, device and precision, through Accelerate."""

from __future__ import annotations

import os
import warnings

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from unlabeled.config.recipe import Train
from unlabeled.errors import UserError

HOW = (
    "accelerate launch --multi_gpu --num_processes {n} pretrain.py RECIPE (on CPUs: ACCELERATE_USE_CPU=true before it)"
)


def start(train: Train) -> Accelerator:
    """Join the other processes of the launch and set the precision.

    Raises UserError if fewer processes came together than the launcher started or `train.processes` asks for, and for
    fp16 without a GPU.
    """
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    if train.precision == "fp16" and not cuda:
        raise UserError("train.precision fp16 needs a GPU; use bf16 or fp32 here")
    precision = {"auto": "bf16" if cuda else "no", "fp32": "no"}.get(train.precision, train.precision)
    # buffers stay as each rank computed them; the engine broadcasts what is not synchronised. The option has a new name
    # in new versions of torch, which say so for every process
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[ddp])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    for wanted, who in ((launched, "the launcher started"), (train.processes, "train.processes asks for")):
        if wanted and wanted != accelerator.num_processes:
            raise UserError(
                f"{who} {wanted} processes, but {accelerator.num_processes} came together. Start them with: "
                + HOW.format(n=wanted)
            )
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif cuda:
        torch.backends.cudnn.benchmark = True
    return accelerator
