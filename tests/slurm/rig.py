"""A real SLURM on one machine: munged, slurmctld and two slurmd, in a folder of their own, nothing else is touched.

Needs root and Debian's packages slurm-wlm and munge. Two nodes on one machine are two slurmd with ports of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

NODES, CPUS, GPUS = 2, 4, 2
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def what_is_missing() -> str:
    """Return why no SLURM can be started here, or nothing."""
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0:
        return "a SLURM of its own needs root"
    try:
        with tempfile.TemporaryDirectory() as folder:
            _make_device(Path(folder) / "gpu")
    except PermissionError:
        return "device files cannot be made here"
    return ""


def _make_device(path: Path) -> None:
    """Make a copy of /dev/null, which is a device to SLURM; torch sees no GPU in it."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Rig:
    """The daemons, and the client commands in their environment; all files are below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        for name in ("state", "munge", "gpu", *(f"spool-{node}" for node in self.nodes())):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(self._configuration())
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.folder / "gres.conf").write_text("".join(self._gpu_lines()))
        munge = {"key-file": key, "socket": self._socket, "pid-file": self.folder / "munged.pid",
                 "log-file": self.folder / "munged.log", "seed-file": self.folder / "munge" / "seed"}
        self.call("munged", "--force", "--num-threads=2", *(f"--{name}={path}" for name, path in munge.items()))
        self.call("slurmctld", "-c", "-i")
        for node in self.nodes():
            self.call("slurmd", "-N", node, "-c")
        self.until(lambda: self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle"] * NODES, 30)

    def stop(self) -> None:
        """End all jobs, then the daemons, each by its process id: nodes first, then the controller, munge last."""
        jobs = self.call("squeue", "-h", "-o", "%A", check=False).split()
        if jobs:
            self.call("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.call("scancel", *jobs, check=False)
        for name in (*(f"slurmd-{node}" for node in self.nodes()), "slurmctld", "munged"):
            self._end(self.folder / f"{name}.pid", name.partition("-")[0])

    def _end(self, file: Path, program: str) -> None:
        if not file.exists():
            return
        number = int(file.read_text())
        if _state(number) in ("", "Z") or program not in Path(f"/proc/{number}/cmdline").read_text():
            return
        os.kill(number, signal.SIGTERM)
        for _ in range(100):
            if _state(number) in ("", "Z"):  # gone, or its end was not taken notice of yet
                return
            time.sleep(0.1)
        os.kill(number, signal.SIGKILL)

    @staticmethod
    def nodes() -> list[str]:
        """Return the names of the nodes."""
        return [f"node{number}" for number in range(1, NODES + 1)]

    def call(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command of SLURM and return what it printed."""
        done = subprocess.run(command, env={**self.environment, **environment}, cwd=self.folder, text=True, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def state(self, job: str) -> str:
        """Return the state of a job or array task, such as RUNNING or COMPLETED."""
        return re.findall(r"JobState=(\w+)", self.call("scontrol", "show", "job", job))[0]

    def until(self, condition, seconds: float = 300) -> None:
        """Wait for a condition."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{self.call('squeue', check=False)}\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """Return the ends of all logs of jobs and of the controller."""
        files = [*self.folder.rglob("*.out"), self.folder / "slurmctld.log"]
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-4000:]}" for file in files if file.exists())

    def ended(self, job: str, *, state: str = "COMPLETED", seconds: float = 300) -> None:
        """Wait for the end of a job and check how it ended."""
        lively = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "PREEMPTED")
        self.until(lambda: self.state(job) not in lively, seconds)
        assert self.state(job) == state, self.logs()

    @property
    def _socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _gpu_lines(self) -> list[str]:
        """Make what stands in for GPUs, and say which nodes have them."""
        lines = []
        for node in self.nodes():
            for number in range(GPUS):
                device = self.folder / "gpu" / f"gpu{number}"
                if not device.exists():
                    _make_device(device)
                lines.append(f"NodeName={node} Name=gpu File={device}\n")
        return lines

    def _configuration(self) -> str:
        host = socket.gethostname().partition(".")[0]
        controller, *ports = _ports(1 + NODES)
        nodes = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=4000 "
            f"Gres=gpu:{GPUS}\n" for node, port in zip(self.nodes(), ports, strict=True)
        )
        plenty = "Nodes=ALL MaxTime=2-0 DefaultTime=10 State=UP"
        # cred_expire: how long a job that was queued again waits, two minutes unless said. config_overrides: the nodes
        # may claim more cores than there are. A preempted job has GraceTime seconds to save
        return f"""ClusterName=rig
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self._socket},cred_expire=5
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
MinJobAge=600
InactiveLimit=0
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
GresTypes=gpu
{nodes}PartitionName=main {plenty} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high {plenty} PriorityTier=10 PreemptMode=OFF
"""


def _state(number: int) -> str:
    """Return the letter of a process's state, nothing if there is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
