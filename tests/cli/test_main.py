"""The command line: what is answered without torch, exit codes, and who speaks in a launch of many processes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from unlabeled import __version__
from unlabeled.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """\
method: simclrv2
backbone: {name: resnet18}
data: {train: {card: card, batch: 8}}
optim: {name: lars, lr: {base: 0.3}}
train: {epochs: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "card.yaml").write_text("name: mine\nsource: {kind: folder}\nsplits: {train: {}}\n")
    (tmp_path / "good.yaml").write_text(RECIPE)
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("epochs", "epcohs"))
    (tmp_path / "protocol.yaml").write_text("protocol: knn\ntemprature: 1\n")
    return tmp_path


def without_torch(*arguments, **environment):
    """Run the command in a process in which importing torch fails; return it and its CPU seconds."""
    code = (
        "import sys\nfor name in ('torch', 'numpy', 'timm', 'accelerate'): sys.modules[name] = None\n"
        "from unlabeled.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "ssl"), **environment})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_without_torch(arguments):
    done, seconds = without_torch(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"unlabeled {__version__}" in done.stdout or "example" in done.stdout
    assert seconds < 0.3


MISTAKES = [
    (["pretrain", "bad.yaml"], "bad.yaml:5: unknown key 'train.epcohs'. Did you mean 'epochs'?"),
    (["pretrain", "good.yaml", "optim.weigth_decay=1"], "override 'optim.weigth_decay=1': unknown key"),
    (["pretrain", "good.yaml", "data.train.card=crad"], "override 'data.train.card=crad': no data card 'crad'."),
    (["pretrain", "good.yaml", "eval.at_end=[protocol]"], "protocol.yaml:2: unknown key 'temprature'. Did you"),
    (["pretrain", "absent"], "no recipe 'absent'."),
    (["pretrain", "good.yaml", "fresh=yes"], "'fresh' needs true or false, given 'yes'"),
    (["pretrain", "good.yaml", "run="], "'run=' has no value"),
    (["pretrain", "good.yaml", "--lr", "3"], "unlabeled pretrain: unrecognized arguments: --lr"),
    (["pretrain"], "unlabeled pretrain: the following arguments are required: RECIPE"),
    (["evaluate", "protocol.yaml", "."], "protocol.yaml:2: unknown key 'temprature'. Did you mean 'temperature'?"),
    (["evaluate", "protocl", "."], "no evaluation protocol 'protocl'."),
    (["features", "good.yml", "."], "'good.yml' does not exist. Did you mean 'good.yaml'?"),
    (["features", ".", ".", "ot=x"], "override 'ot=x': unknown key 'ot'. Did you mean 'out'?"),
    (["features", ".", ".", "precision=fp64"], "'precision' is 'fp64'; allowed: auto, bf16, fp16, fp32"),
    (["features", ".", ".", "part=17/16"], "override 'part=17/16': part: there is no '17/16'; allowed: 1/16 to 16/16"),
    (["features", ".", ".", "split=train"], "'split' goes with a data card, but . is a folder; leave it out"),
    (["features", ".", "cifar1"],
     "no folder 'cifar1', and no data card 'cifar1'. Did you mean 'cifar10' or 'cifar100'?"),
    (["pretrian"], "unlabeled: no command 'pretrian'. Did you mean 'pretrain'?"),
    (["--verison"], "unlabeled: unrecognized arguments: --verison"),
]

# one process for all of them, in which importing torch fails
ANSWER_ALL = """
import contextlib, io, json, sys
for name in ("torch", "numpy", "timm", "accelerate"):
    sys.modules[name] = None
from unlabeled.cli.main import main
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def test_what_a_user_did_wrong_is_answered_without_torch(folder):
    done = subprocess.run([sys.executable, "-c", ANSWER_ALL, json.dumps([arguments for arguments, _ in MISTAKES])],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "ssl")})
    assert done.stderr == ""
    for (arguments, message), line in zip(MISTAKES, done.stdout.splitlines(), strict=True):
        code, out, err = json.loads(line)
        assert (code, out) == (2, ""), arguments
        assert message in err
        assert len(err.splitlines()) <= 2


def test_a_mistake_gives_exit_code_2_and_no_traceback(folder):
    done, _ = without_torch("pretrain", "bad.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bad.yaml:5: unknown key 'train.epcohs'. Did you mean 'epochs'?\n"


def test_recipes_and_schema_without_torch():
    done, seconds = without_torch("recipes")
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < 0.3
    done, _ = without_torch("schema")
    assert json.loads(done.stdout)["properties"]["optim"]


def test_only_the_first_process_speaks(folder, capsys, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    for rank, words in (("0", "bad.yaml:5"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert main(["pretrain", "bad.yaml"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(words)
        assert bool(said) == bool(words)
    assert len(waits) == 1  # so that the launcher does not end the first process before it has spoken


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_settings_and_options_in_any_order(folder, monkeypatch):
    seen = {}

    def run(arguments):
        seen.update(vars(arguments))
        return 0

    monkeypatch.setattr(COMMANDS["pretrain"], "run", run)
    assert main(["pretrain", "--dry-run", "r", "a=1", "--print", "b=-2"]) == 0
    assert seen == {"recipe": "r", "settings": ["a=1", "b=-2"], "show": True, "dry_run": True, "images": None}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_says_what_it_does(command):
    assert command.SUMMARY.endswith(".")
    assert any(example.startswith("unlabeled ") for example in command.EXAMPLES)


@pytest.mark.parametrize("script", ["pretrain.py", "evaluate.py"])
def test_scripts_of_a_clone_run_from_anywhere(folder, script):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, ROOT / script, "absent", "."]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(("no recipe 'absent'", "no evaluation protocol 'absent'"))
