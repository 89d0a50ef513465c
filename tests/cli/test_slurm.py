"""What `unlabeled slurm` prints and submits, and what it refuses, without a SLURM."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from unlabeled.cli.main import main
from unlabeled.config.jobs.slurm import SlurmSettings
from unlabeled.config.pack import PackSettings
from unlabeled.config.passes.labelmaps import LabelmapSettings
from unlabeled.config.passes.mining import MineSettings
from unlabeled.config.passes.reinforce import ReinforceSettings
from unlabeled.config.protocols.all import AnyProtocol
from unlabeled.config.recipe import Recipe
from unlabeled.config.yaml.explain import blocks

ROOT = Path(__file__).resolve().parents[2]
MARK = "# ---- from here on all scripts are the same\n"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["slurm", *arguments]) == 0
    return capsys.readouterr().out


def head(text: str) -> list[str]:
    return text.partition(MARK)[0].splitlines()


def command(text: str) -> list[str]:
    line = next(line for line in head(text) if line.startswith("command="))
    return shlex.split(line.removeprefix("command=(").removesuffix(")"))


def test_all_scripts_are_one_but_for_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    bodies = {(ROOT / "slurm" / f"{name}.sbatch").read_text().partition(MARK)[2] for name in ("pretrain", "evaluate")}
    bodies.add(printed(capsys, "demo/simclrv2").partition(MARK)[2])
    assert len(bodies) == 1 and len(bodies.pop()) > 1000


@pytest.mark.parametrize("name", ["pretrain", "evaluate"])
def test_scripts_are_bash_and_name_their_command(name: str) -> None:
    file = ROOT / "slurm" / f"{name}.sbatch"
    subprocess.run(["bash", "-n", file], check=True)
    assert f'command=({name} "$@")' in head(file.read_text())
    assert "#SBATCH --requeue" in head(file.read_text()) and "#SBATCH --open-mode=append" in head(file.read_text())


def test_the_head_says_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "demo/simclrv2", "nodes=2", "gpus=8", "time=1-12:00:00", "mem=200G", "partition=gpu",
                   "warn=120", "sbatch=[--exclusive]", "setup=module load cuda", "run=runs/x y", "after=[7,8]")
    options = [line.removeprefix("#SBATCH ") for line in head(text) if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--gres=gpu:8", "--time=1-12:00:00", "--mem=200G", "--partition=gpu", "--signal=B:USR1@120",
            "--exclusive", "--requeue", "--open-mode=append", "--dependency=afterok:7:8", "--kill-on-invalid-dep=yes",
            "--output=runs/slurm/%x-%j.out", "--job-name=pretrain-demo-simclrv2"} <= set(options)
    assert not any(option.startswith("--array") for option in options)
    assert "module load cuda" in head(text)
    assert command(text) == ["pretrain", "demo/simclrv2", "run=runs/x y", "train.processes=16"]


def test_arrays_share_their_work_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "sweep", "demo/simclrv2", "optim.lr.base=[1,2]", "train.seed=[0,1,2]", "at_once=4")
    assert "#SBATCH --array=1-6%4" in head(text) and "#SBATCH --output=runs/slurm/%x-%A_%a.out" in head(text)
    assert 'part="$SLURM_ARRAY_TASK_ID/6")' in text
    text = printed(capsys, "labelmaps", "runs/teacher", "card=digits", "out=maps", "parts=16")
    assert "#SBATCH --array=1-16" in head(text) and 'part="$SLURM_ARRAY_TASK_ID/16")' in text
    assert command(text)[:2] == ["labelmaps", "runs/teacher"]


def test_a_chain_is_a_job_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "chain", "demo", "pretrain.optim.lr.base=2", "--seeds", "3")
    scripts = [f"#!/bin/bash{part}" for part in text.split("#!/bin/bash")[1:]]
    assert [next(word for word in command(one) if word.startswith("steps=")) for one in scripts] == [
        "steps=pretrain", "steps=finetune", "steps=distil"]
    assert all(command(one)[-2:] == ["--seeds", "3"] for one in scripts)
    assert ["afterok" in one.partition(MARK)[0] for one in scripts] == [False, True, True]


def test_folds_go_with_an_evaluation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = printed(capsys, "evaluate", "knn", str(tmp_path), "card=ucf101", "--folds")
    assert command(text) == ["evaluate", "knn", str(tmp_path), "card=ucf101", "--folds"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["labelmaps", "runs/x", "card=digits", "out=maps", "--folds"], "--folds has no effect with labelmaps"),
    (["demo/simclrv2", "gpu=8"], "unlabeled slurm: unknown key 'gpu'. Did you mean 'gpus'?"),
    (["demo/simclrv2", "nodse=2"], "unlabeled slurm: unknown key 'nodse'. Did you mean 'nodes'?"),
    (["demo/simclrv2", "gres=gpu:8"], "unlabeled slurm: unknown key 'gres'. Did you mean 'gpus'?"),
    (["demo/simclrv2", "ntasks_per_node=8"], "unknown key 'ntasks_per_node'. Did you mean 'processes'?"),
    (["demo/simclrv2", "optim.lr.bas=8"], "'optim.lr.bas=8': unknown key 'optim.lr.bas'. Did you mean 'base'?"),
    (["demo/simclvr2"], "no recipe 'demo/simclvr2'. Did you mean 'demo/simclrv2' or"),
    (["demo/simclrv2", "time=soon"], "time: 'soon' is no time; give HH:MM:SS, D-HH:MM:SS, or minutes"),
    (["demo/simclrv2", "time=5"], "'warn' of 300 s leaves nothing of time 5"),
    (["demo/simclrv2", "gpus=3"], "data.train.batch 128 does not divide into 3 processes x 1 micro-batches"),
    (["demo/simclrv2", "gpus=2", "train.processes=4"], "train.processes asks for 4 processes, but 1 nodes of 2 are 2"),
    (["demo/simclrv2", "parts=3"], "'parts' has no effect with pretrain"),
    (["sweep", "demo/simclrv2", "optim.lr.bas=[1,2]"], "unknown key 'optim.lr.bas'"),
    (["evaluate", "knn"], "unlabeled slurm evaluate: 2 arguments before the settings, given 1"),
    (["evaluate", "knn", "runs/x", "temprature=2"], "unknown key 'temprature'. Did you mean 'temperature'?"),
    (["labelmaps", "runs/x", "card=digits", "out=x", "kk=3"], "unknown key 'kk'"),
    (["chain", "demo", "steps=finetun"], "no step 'finetun'. Did you mean 'finetune'?"),
    (["nodes=2"], "'nodes=2' is no recipe"),
    (["demo/simclrv2", "sbatch=[exclusive]"], "'exclusive' is no option of sbatch; write --exclusive"),
])
def test_what_is_wrong_is_said_before_it_waits_in_a_queue(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["slurm", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and len(said.err.splitlines()) <= 2


@pytest.mark.parametrize(("time", "seconds"), [
    (90, 5400), ("90", 5400), ("90:30", 5430), ("2:00:05", 7205), ("1-0", 86400), ("1-2:30", 95400),
    ("1-2:30:05", 95405),
])  # fmt: skip
def test_times_are_slurms(time: str | int, seconds: int) -> None:
    assert SlurmSettings(time=time).seconds == seconds


def test_no_key_of_a_job_is_one_of_a_command() -> None:
    own = set(SlurmSettings.model_fields)
    for model in (Recipe, PackSettings, LabelmapSettings, ReinforceSettings, MineSettings, *blocks(AnyProtocol)):
        assert not own & set(model.model_fields), model


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an sbatch into the path that keeps what it is given and answers with a number."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text('#!/bin/bash\nn=$(ls "$0".* 2> /dev/null | wc -l)\ncat > "$0.$n"\necho "$((40 + n));cluster"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return program


def test_a_job_that_starts_again_goes_on_also_with_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlabeled.engine import train as module

    begun: list[bool] = []
    result = module.Result(tmp_path, 1, finished=False)
    monkeypatch.setattr(module, "train", lambda *given, fresh, **more: begun.append(fresh) or result)
    for count in (None, "1"):
        if count:
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert main(["pretrain", "demo/simclrv2", f"run={tmp_path / 'run'}", "fresh=true"]) == 0
    assert begun == [True, False]


def test_steps_are_submitted_to_follow_one_another(sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "chain", "demo", "submit=true", "after=7")
    texts = [sbatch.with_name(f"sbatch.{number}").read_text() for number in range(3)]
    after = [re.findall(r"--dependency=(\S+)", text) for text in texts]
    assert after == [["afterok:7"], ["afterok:7:40"], ["afterok:7:41"]]
    assert "job 42: unlabeled chain demo steps=distil, after 7, 41" in said
    assert "log: tail -F runs/slurm/chain-demo-distil-42.out" in said and "scancel 42" in said
    assert Path("runs/slurm").is_dir()


def test_what_sbatch_says_is_passed_on(sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sbatch.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    assert main(["slurm", "demo/simclrv2", "partition=gpu", "submit=true"]) == 2
    assert capsys.readouterr().err == "sbatch refuses the job: invalid partition specified: gpu\n"


def test_without_sbatch_nothing_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["slurm", "demo/simclrv2", "submit=true"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
