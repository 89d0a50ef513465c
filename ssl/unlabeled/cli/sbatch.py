"""Scripts for SLURM and their submission: what `unlabeled slurm` prints stands in slurm/, but for its head."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlabeled.errors import UserError

if TYPE_CHECKING:
    from unlabeled.config.jobs.slurm import SlurmSettings

_BODY = "# ---- from here on all scripts are the same\n"


def script(command: Sequence[str], name: str, settings: SlurmSettings, *, dependencies: Sequence[str] = (),
           parts: int | None = None) -> str:
    """Return a job script that runs an `unlabeled` command; parts: of an array, each with part=NUMBER/PARTS."""
    from unlabeled.config.files import job_script

    options = settings.options(name, dependencies=list(dependencies), parts=parts)
    words = [shlex.quote(word) for word in command]
    if parts is not None:
        words.append(f'part="$SLURM_ARRAY_TASK_ID/{parts}"')
    exports = f"export PYTHON={shlex.quote(sys.executable)}"
    if settings.processes is not None:
        exports += f" PROCESSES={settings.processes}"
    head = ["#!/bin/bash", *(f"#SBATCH {shlex.quote(option)}" for option in options), *filter(None, [settings.setup]),
            exports, f"command=({' '.join(words)})"]
    return "\n".join(head) + f"\n\n{_BODY}" + job_script("pretrain").partition(_BODY)[2]


def submit(text: str, settings: SlurmSettings) -> str:
    """Submit a script and return the number of its job. Raises UserError with what SLURM says against it."""
    folder = Path(settings.logs)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # else the job ends without a word
    except OSError as error:
        raise UserError(f"logs={folder}: the folder cannot be made: {error.strerror}") from error
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError("there is no sbatch here: submit=true belongs on a machine of the cluster; without it the "
                        "script is printed") from None
    except subprocess.TimeoutExpired:
        raise UserError("sbatch did not answer within 120 s: does 'sinfo' answer?") from None
    number = re.match(r"\d+", done.stdout)
    if done.returncode or number is None:
        said = " ".join((done.stderr or done.stdout).replace("sbatch: error: ", "").split())
        raise UserError(f"sbatch refuses the job: {said}")
    return number[0]


def watching(job: str, name: str, settings: SlurmSettings, *, parts: int | None = None) -> list[str]:
    """Return the lines that say how to watch and end a job."""
    log = f"{settings.logs}/{name}-{job}" + ("_*.out" if parts else ".out")
    return [f"  state: squeue -j {job}", f"  log: tail -F {log}",
            f"  save now and queue again: scancel --batch --signal=USR1 {job}", f"  end: scancel {job}"]

