"""The command line of the graph tool: ``ostinato graph lint | breaks | …``, or ``python -m ostinato.graphs.inspect``.

stdout holds the report or its JSON and nothing else. Exit codes: 0 nothing of severity error, 1 findings of severity
error or a broken gate, 2 the tool could not run (one line on stderr), 130 after Ctrl-C. Importing it imports no torch.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from ostinato.graphs.inspect import cli_files, cli_targets
from ostinato.graphs.inspect.cli_capture import capture
from ostinato.graphs.inspect.cli_targets import Program
from ostinato.layers.errors import ConfigError, OstinatoError

if TYPE_CHECKING:
    from ostinato.graphs.inspect.target import Target

INTERRUPTED = 130
_HERE = (sys.executable, "-P", "-m", "ostinato.graphs.inspect")
ORDER = (
    *("lint", "breaks", "emulate", "verify", "capture", "show", "diff"),
    *("memory", "timeline", "startup", "sizes", "report", "check"),
)


class _Group(TyperGroup):
    """Turns whatever stops the tool into an error that exits with 2."""

    def invoke(self, ctx: Any) -> Any:
        """``ConfigError`` for any error but typer's own; Ctrl-C is an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            if isinstance(error, ConfigError | typer.Exit | typer.Abort) or hasattr(error, "format_message"):
                raise
            raise ConfigError(_said(error)) from error


def graph_commands(resolve: Callable[[str], Target] | None = None, command: tuple[str, ...] = _HERE) -> typer.Typer:
    """All commands as a group; ``command`` is the command line under which they are found.

    ``resolve`` makes a target of a name that has no ``:function`` in it, such as a checkpoint's.
    """
    group = typer.Typer(
        cls=_Group,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "obj": Program(resolve, command)},
        help="Find what breaks, recompiles, refuses capture or replays wrong values in a step: lines, reasons, fixes.",
        epilog="Exit codes: 0 clean, 1 findings of severity error or a broken gate, 2 the tool could not run "
        "(--debug shows where).",
    )
    known = {function.__name__: function for function in (*cli_targets.COMMANDS, capture, *cli_files.COMMANDS)}
    for name in ORDER:
        group.command(name)(known[name])
    return group


def main() -> NoReturn:
    """Run the command that ``sys.argv`` asks for, without the rest of ostinato, and exit."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = graph_commands()(
            arguments or ["--help"], prog_name=" ".join(("python", *_HERE[2:])), standalone_mode=False
        )
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        print(f"error: {_one_line(getattr(error, 'format_message', error.__str__)())}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)


def _said(error: Exception) -> str:
    if isinstance(error, OstinatoError):
        return str(error)
    return f"{type(error).__name__}: {error} (unexpected: --debug shows where)"


def _one_line(message: str) -> str:
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())
