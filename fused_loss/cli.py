"""`fused-loss`: the commands by name; the one asked for is the only one imported.

A command is a module with `configure(parser)`, which adds its options, and `run(args) -> int`.

Exit codes: 0 done (a written file is verified); 1 failed; 2 usage; 3 verification ran and failed,
and nothing new is at OUT; 4 a dependency is missing, and the message names the extra.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import fused_loss
from fused_loss.signals import Terminated, unwinding

DONE, FAILED, USAGE, REFUSED, MISSING, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143


class Command(NamedTuple):
    """Where a command lives, the extra that it needs, and a line about it."""

    module: str
    extra: str
    about: str


COMMANDS = {
    "export": Command(
        "fused_loss.export.cli_export", "export", "write a model to ONNX, verified or not at all"
    ),
    "verify": Command(
        "fused_loss.export.cli_verify", "export", "hold an ONNX file to the model it was made from"
    ),
    "inspect": Command(
        "fused_loss.export.cli_inspect", "export", "show what an ONNX file is and says of itself"
    ),
    "predict": Command(
        "fused_loss.export.cli_predict", "export", "run an ONNX file over a table or an array"
    ),
    "demo": Command(
        "fused_loss.demo", "demo", "train on the Palmer penguins, export, verify and show"
    ),
    "bench": Command(
        "fused_loss.bench.report", "bench", "time the loss against eager and torch.compile"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error is a message on stderr (a traceback under FUSED_LOSS_DEBUG=1)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if not word.startswith("-")), "")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no name breaks an ASCII one
    try:
        return _run(name, arguments)
    except SystemExit as stop:  # argparse has said what it had to say
        return stop.code if isinstance(stop.code, int) else USAGE
    except BrokenPipeError:
        return _without_reader()
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except Terminated:
        return _say("terminated", TERMINATED)
    except Exception as error:
        if os.environ.get("FUSED_LOSS_DEBUG") == "1":
            raise
        return _explain(error, name)


def _run(name: str, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("fused-loss", description=fused_loss.__doc__)
    parser.add_argument(
        "--version", action="version", version=f"fused-loss {fused_loss.__version__}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parsers = {
        known: commands.add_parser(known, help=command.about, description=command.about)
        for known, command in COMMANDS.items()
    }
    if name not in COMMANDS:
        parser.parse_args(arguments)  # prints the help, the version or the error, and leaves
    module = importlib.import_module(COMMANDS[name].module)
    module.configure(parsers[name])
    args = parser.parse_args(arguments)
    with unwinding():
        code = int(module.run(args))
    sys.stdout.flush()  # a reader that has left is noticed here, not at exit
    return code


def _explain(error: Exception, name: str) -> int:
    """One message and the exit code of what went wrong."""
    from fused_loss.export.errors import MissingDependencyError, OnnxVerificationError, UsageError

    if isinstance(error, ImportError):
        if isinstance(error, MissingDependencyError):
            return _say(error, MISSING)
        extra = COMMANDS[name].extra if name in COMMANDS else "all"
        return _say(f"{error}: pip install 'fused-loss[{extra}]'", MISSING)
    if isinstance(error, OnnxVerificationError):
        return _say(error, REFUSED)
    if isinstance(error, UsageError):
        return _say(error, USAGE)
    return _say(str(error) or type(error).__name__, FAILED)


def _say(message: object, code: int) -> int:
    print(f"fused-loss: {message}", file=sys.stderr)
    return code


def _without_reader() -> int:
    """Whoever read our output has left: nothing more can be said, at exit neither."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
