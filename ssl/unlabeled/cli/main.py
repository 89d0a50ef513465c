"""The `unlabeled` command: finds the sub-command, runs it, and prints what a user did wrong without a traceback.

Nothing is imported before it is needed: help, version, a list of recipes and a wrong key are answered without torch.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Sequence

from unlabeled import __version__
from unlabeled.cli import (
    chain,
    convert,
    evaluate,
    export,
    extract,
    features,
    labelmaps,
    look,
    mine,
    pack,
    pretrain,
    recipes,
    reinforce,
    replay,
    schema,
    slurm,
    sweep,
)
from unlabeled.cli.arguments import Parser, first_process
from unlabeled.cli.output import safe_streams
from unlabeled.errors import NodeError, UserError, did_you_mean, nearest

COMMANDS = {"pretrain": pretrain, "evaluate": evaluate, "chain": chain, "sweep": sweep, "slurm": slurm,
            "features": features, "export": export,
            "extract": extract, "look": look, "pack": pack, "labelmaps": labelmaps, "reinforce": reinforce,
            "mine": mine, "replay": replay, "convert": convert, "recipes": recipes, "schema": schema}

PRINTING = {"recipes", "schema", "--print", "--help", "-h", "--version"}  # what they print is all that they do


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for bad input, 130 after Ctrl-C, 1 if a process was lost."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    safe_streams(strict=not arguments or not PRINTING.isdisjoint(arguments))
    if "UNLABELED_REQUEUE" in os.environ:  # the job script ignores USR1 for the launcher, not for this process
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch says with stacks what is told here in one line
    try:
        return _run(arguments)
    except UserError as error:
        if first_process() or isinstance(error, NodeError):
            print(error, file=sys.stderr)
        else:
            time.sleep(1)  # a launcher ends all processes when one has ended: the first must have spoken by then
        return 2
    except KeyboardInterrupt:
        if first_process():
            print("interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if not _process_lost(error):
            raise
        return 1
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return 0


def _process_lost(error: RuntimeError) -> bool:
    """Return whether an error means that another process of the run is gone, which is then said."""
    if "unlabeled.engine.watch" not in sys.modules:
        return False
    from unlabeled.engine.watch import watch

    return watch().explain(error)


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        return _top(arguments)
    name, command = arguments[0], COMMANDS[arguments[0]]
    parser = Parser(f"unlabeled {name}", command.SUMMARY, command.EXAMPLES)
    command.configure(parser)
    from unlabeled.config.consent.agreed import trusting

    words = [word for word in arguments[1:] if word != "trust=true"]
    with trusting(len(words) < len(arguments) - 1):
        code: int = command.run(parser.parse_intermixed_args(words))
    sys.stdout.flush()
    atexit.register(_leave_group)
    return code


def _leave_group() -> None:
    """Part from the other processes of a launch before Python ends.

    Threads of gloo that outlive it abort the process now and then, after all is done (pytorch issue 190489). Only after
    a command that came to its end: where a process is lost, others may wait inside a collective for the lost one.
    """
    if "torch.distributed" in sys.modules:
        from unlabeled.ops.distributed import leave_group

        leave_group()


def _top(arguments: Sequence[str]) -> int:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {command.SUMMARY}" for name, command in COMMANDS.items())
    examples = [command.EXAMPLES[0] for command in COMMANDS.values()]
    summary = f"Self- and semi-supervised pretraining of vision backbones.\n\ncommands:\n{listed}\n\n" \
        "trust=true behind any command runs what the folder of somebody else's run names (module:Class, pipe:COMMAND)"
    parser = Parser("unlabeled", summary, examples)
    parser.usage = "unlabeled COMMAND ... (unlabeled COMMAND --help says more)"
    parser.add_argument("--version", action="version", version=f"unlabeled {__version__}")
    if not arguments:
        parser.print_help()
        return 2
    if not arguments[0].startswith("-"):
        question = did_you_mean(nearest(arguments[0], COMMANDS), f"Known: {', '.join(COMMANDS)}")
        raise UserError(f"unlabeled: no command '{arguments[0]}'.{question}")
    parser.parse_args(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
