"""What a job asks of SLURM. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from unlabeled.config.base.strict import Strict

_EARLY = 60  # seconds by which SLURM may give a signal too early
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")

# what SLURM and others call it -> the key here
OTHER_NAMES = {
    "array": "parts", "begin": "sbatch", "cpus-per-task": "cpus", "dependency": "after", "exclusive": "sbatch",
    "gpus-per-node": "gpus", "gres": "gpus", "gpu": "gpus", "job-name": "name", "memory": "mem", "ntasks": "processes",
    "ntasks-per-node": "processes", "output": "logs", "queue": "partition", "reservation": "sbatch", "signal": "warn",
    "walltime": "time",
}  # fmt: skip


class SlurmSettings(Strict):
    """Nodes, time and what else `sbatch` takes; numbers are per node."""

    nodes: int = Field(1, gt=0)
    gpus: int = Field(0, ge=0, description="per node, one process each; 0: on CPUs")
    processes: int | None = Field(None, gt=0, description="per node, where it is not one per GPU")
    cpus: int | None = Field(None, gt=0, description="cores per node")
    mem: str | int | None = Field(None, description="memory per node, such as 200G")
    time: str | int = Field("24:00:00", description="limit of one go: HH:MM:SS, D-HH:MM:SS, or minutes")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = Field(None, description="of the nodes")
    name: str | None = Field(None, pattern=r"^[\w.+-]+$", description="of the job and of its log")
    logs: str = Field("runs/slurm", description="folder of the logs, which is made")
    after: int | str | list[int | str] = Field([], description="jobs that must have finished well")
    parts: int | None = Field(None, gt=0, description="jobs of an array that share the work")
    at_once: int | None = Field(None, gt=0, description="of the array's jobs")
    warn: int = Field(300, ge=10, description="seconds before the limit at which the run is told to save")
    setup: str | None = Field(None, description="shell line before all others, such as 'module load cuda'")
    sbatch: list[str] = Field([], description="further options of sbatch, such as [--exclusive]")
    submit: bool = Field(False, description="submit the script; else it is printed")

    @field_validator("time", mode="after")
    @classmethod
    def _is_a_time(cls, value: Any) -> str:
        if not _TIME.fullmatch(str(value)):
            raise ValueError(f"'{value}' is no time; give HH:MM:SS, D-HH:MM:SS, or minutes")
        return str(value)

    @field_validator("sbatch", mode="after")
    @classmethod
    def _are_options(cls, value: list[str]) -> list[str]:
        for option in value:
            if not option.startswith("-"):
                raise ValueError(f"'{option}' is no option of sbatch; write --{option}")
        return value

    @model_validator(mode="after")
    def _time_is_left_before_the_warning(self) -> SlurmSettings:
        if self.seconds < self.warn + _EARLY:
            raise ValueError(f"'warn' of {self.warn} s leaves nothing of time {self.time}: SLURM may give the signal "
                             f"{_EARLY} s early; ask for more time, or set warn to less")
        return self

    @model_validator(mode="after")
    def _at_once_needs_parts(self) -> SlurmSettings:
        if self.at_once is not None and self.parts is None and "parts" in self.model_fields_set:
            raise ValueError("'at_once' has no effect without parts")
        return self

    @property
    def seconds(self) -> int:
        """Return the limit in seconds: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
        days, dash, rest = str(self.time).rpartition("-")
        numbers = [int(part) for part in rest.split(":")]
        if dash or len(numbers) == 3:
            hours, minutes, seconds = [*numbers, 0, 0][:3]
        else:
            hours, minutes, seconds = 0, *[*numbers, 0][:2]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def per_node(self) -> int:
        """Return the processes of a node."""
        return self.processes or self.gpus or 1

    @property
    def world(self) -> int:
        """Return the processes of the job."""
        return self.nodes * self.per_node

    def dependencies(self) -> list[str]:
        """Return the numbers of the jobs to wait for."""
        return [str(job) for job in (self.after if isinstance(self.after, list) else [self.after])]

    def options(self, name: str, *, dependencies: list[str], parts: int | None) -> list[str]:
        """Return the options of sbatch, in the order of a script's head."""
        array = None if parts is None else f"1-{parts}" + (f"%{self.at_once}" if self.at_once else "")
        given = {
            "job-name": name, "nodes": self.nodes, "ntasks-per-node": 1, "cpus-per-task": self.cpus,
            "gres": f"gpu:{self.gpus}" if self.gpus else None, "mem": self.mem, "time": self.time,
            "partition": self.partition, "account": self.account, "qos": self.qos, "constraint": self.constraint,
            "array": array, "output": f"{self.logs}/%x-{'%A_%a' if array else '%j'}.out", "open-mode": "append",
            "signal": f"B:USR1@{self.warn}",
            "dependency": f"afterok:{':'.join(dependencies)}" if dependencies else None,
            "kill-on-invalid-dep": "yes" if dependencies else None,
        }  # fmt: skip
        return ["--requeue", *(f"--{key}={value}" for key, value in given.items() if value is not None), *self.sbatch]
