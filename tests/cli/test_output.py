"""What is printed: without a reader, on a full disk, with a closed stream, in another encoding."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIN = f"{sys.executable} -m unlabeled.cli.main"
PRINT = (
    f"{sys.executable} -c \"import sys, time\n"
    "from unlabeled.cli.output import safe_streams\n"
    "safe_streams(strict=False)\n"
    "for n in range(3): print('line', n, flush=True); time.sleep(0.1)\n"
    "print('caf\\xe9 \\udcff \\u2501', flush=True); print('end', file=sys.stderr)\""
)


def shell(line: str, **environment: str) -> tuple[int, str]:
    """Run a shell line and return its exit code, the left-most one of a pipe that is not 0, and standard error."""
    env = {**os.environ, "PYTHONPATH": "ssl", **environment}
    out = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, env=env, capture_output=True, timeout=60)
    return out.returncode, out.stderr.decode(errors="replace")


@pytest.mark.parametrize(("to", "said"), [
    ("| head -1", "standard output: Broken pipe; going on without it\n"),
    ("> /dev/full", "standard output: No space left on device; going on without it\n"),
    (">&-", ""),
])  # fmt: skip
def test_printing_goes_on_without_a_reader(to: str, said: str) -> None:
    assert shell(f"{PRINT} {to}") == (0, f"{said}end\n")


@pytest.mark.parametrize("to", [">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full >/dev/full", "2>&1 | true"])
def test_nothing_ends_it_where_nothing_can_be_said(to: str) -> None:
    assert shell(f"{PRINT} {to}") == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_opened_next_does_not_take_the_place_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    code = ("import sys; from unlabeled.cli.output import safe_streams; safe_streams(strict=False); "
            "file = open(sys.argv[1], 'w'); print('out', flush=True); print('error', file=sys.stderr)")
    shell(f'{sys.executable} -c "{code}" {tmp_path / "file"} {closed}')
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_every_name_can_be_printed(encoding: str) -> None:
    code, error = shell(f"{PRINT} >&2", PYTHONIOENCODING=encoding)
    assert code == 0 and "\\udcff" in error and error.endswith("end\n") and "Traceback" not in error


def test_a_reader_who_has_stopped_holds_nothing_up() -> None:
    code = (
        "import sys, unlabeled.cli.output as output; output._PATIENCE = 0.2; output.safe_streams(strict=False)\n"
        "for _ in range(300): print('x' * 1000)\n"
        "print('end', file=sys.stderr)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": "ssl"}, cwd=ROOT) as process:
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read() == b"end\n"


def test_a_terminal_that_is_closed_holds_nothing_up() -> None:
    here, there = pty.openpty()
    code = (
        "import sys; from unlabeled.cli.output import safe_streams; safe_streams(strict=False)\n"
        "assert sys.stdout.isatty(); print('a'); sys.stdin.readline(); print('b', flush=True); sys.exit(7)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=there, stderr=there,
                          env={**os.environ, "PYTHONPATH": "ssl"}, cwd=ROOT) as process:
        os.close(there)
        assert os.read(here, 9).startswith(b"a")
        os.close(here)
        process.communicate(b"\n")
        assert process.returncode == 7


@pytest.mark.parametrize(("line", "code", "said"), [
    ("recipes | true", 0, ""),
    ("schema | head -1", 0, ""),
    ("schema > /dev/full", 2, "cannot write to standard output: No space left on device\n"),
    ("recipes > /dev/full", 2, "cannot write to standard output: No space left on device\n"),
    ("recipes > /dev/full 2>&-", 2, ""),
    ("--help | true", 0, ""),
    ("recipes nonsense 2>/dev/full", 2, ""),
])  # fmt: skip
def test_a_command_that_only_prints_says_when_it_cannot(line: str, code: int, said: str) -> None:
    assert shell(f"{MAIN} {line}") == (code, said)
