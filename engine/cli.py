"""The command line: ``ostinato generate | chat | info | doctor | models | graph``.

stdout holds what was asked for and nothing else; progress, statistics and errors go to stderr. Exit codes: 0, 2 for the
user's mistakes, 1 for other failures, 130 after Ctrl-C (``graph`` has its own). Knows the public API only, and imports
it when a command needs it: ``ostinato --help`` imports no torch.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ostinato import __version__
from ostinato.cli_options import Given, engine_options, parse_token_ids, sampling_options, taking
from ostinato.cli_report import check_writable, put_report
from ostinato.cli_stream import ReaderGone, converse, put, show_stream
from ostinato.graphs.inspect.cli import graph_commands
from ostinato.layers.errors import ConfigError, ModelLoadError, OstinatoError, OutOfBlocks, ParamError

if TYPE_CHECKING:
    from ostinato import LLM, SamplingParams
    from ostinato.graphs.inspect.target import Target

USER_MISTAKES = (ConfigError, ParamError, ModelLoadError, OutOfBlocks)
INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended
CHAT_MAX_TOKENS = 1024  # where neither the user nor the checkpoint says

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id (ORG/NAME), or demo.")]
Defaults = Annotated[
    bool, typer.Option("--defaults", help="Start from the checkpoint's own sampling values (generation_config.json).")
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write one JSON object there; - is stdout, in place of text."),
]
Stats = Annotated[bool, typer.Option("--stats", help="Print the engine's statistics to stderr at the end.")]


class _Cli(TyperGroup):
    """Turns every way a command can end into one line and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        given = args[0] if args else options.pop("args", None)
        arguments = list(sys.argv[1:] if given is None else given)
        debug = "--debug" in arguments[: arguments.index("--") if "--" in arguments else None]
        if debug:  # taken wherever it stands
            arguments.remove("--debug")
        for stream in (sys.stdin, sys.stdout):  # a character that the terminal cannot show is no reason to stop
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            code = super().main(arguments or ["--help"], *args[1:], **options | {"standalone_mode": False})
        except Exception as error:
            code = _report(error, debug)
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        """Take Ctrl-C and a closed pipe here: typer's own ways differ between versions."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return INTERRUPTED
        except ReaderGone:
            with contextlib.suppress(OSError):  # or the interpreter flushes into the closed pipe when it exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


app = typer.Typer(
    cls=_Cli,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a transformer language model in this process.",
)


def main() -> None:
    """Run the command that ``sys.argv`` asks for, and exit."""
    app(prog_name="ostinato")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ostinato {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    pass


@app.command()
@taking(sampling=sampling_options, engine=engine_options)
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The text to continue.")] = None,
    token_ids: Annotated[str | None, typer.Option(help="The prompt as token ids, as in 1,2,3.")] = None,
    defaults: Defaults = False,
    stats: Stats = False,
    *,
    sampling: Given,
    engine: Given,
) -> None:
    """Continue PROMPT; print the text as it comes (token ids, for a checkpoint without tokenizer)."""
    wanted, given = _prompt(prompt, token_ids), _checked(sampling)
    with _open(model, engine, stats) as llm:
        params = _params(llm, given, defaults)
        show_stream(llm.stream(wanted, params), [], as_text=llm.tokenizer is not None)


@app.command()
@taking(sampling=sampling_options, engine=engine_options)
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    defaults: Defaults = False,
    stats: Stats = False,
    *,
    sampling: Given,
    engine: Given,
) -> None:
    """Talk with a model through its own chat template. /exit or Ctrl-D ends; Ctrl-C stops an answer."""
    given = _checked(sampling)
    _require_chat_template(model, engine.get("revision"))
    with _open(model, engine, stats) as llm:
        if not (defaults and llm.default_sampling_params.max_new_tokens):
            given = {"max_tokens": CHAT_MAX_TOKENS} | given
        params = _params(llm, given, defaults)
        converse(lambda messages: llm.stream_chat(messages, params), system)


@app.command()
@taking(engine=engine_options)
def info(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, sizes in bytes.")] = False,
    *,
    engine: Given,
) -> None:
    """Show what a model is and what the engine would make of it, without loading it."""
    from ostinato import EngineConfig, cli_info

    plan = EngineConfig(model, **engine).resolve()
    put((cli_info.as_json(plan) if as_json else cli_info.as_text(plan)) + "\n")


@app.command()
def doctor(
    model: Model,
    against: Annotated[
        str | None, typer.Option(metavar="transformers", help="Load the weights and compare with transformers' model.")
    ] = None,
    json_file: JsonFile = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
) -> None:
    """Examine a checkpoint: config, tensors, tokenizer. Exit code 1 where something is wrong with it."""
    if against not in (None, "transformers"):
        raise ParamError(f"--against: expected transformers, got {against!r}")
    check_writable(json_file)
    from ostinato import cli_doctor
    from ostinato.doctor import diagnose
    from ostinato.models.checkpoint import resolve_model

    found = diagnose(resolve_model(model, revision), against is not None)
    put_report(lambda: cli_doctor.as_text(found), lambda: cli_doctor.as_json(found), json_file)
    raise typer.Exit(0 if found.sound else 1)


@app.command("models")
def list_models(json_file: JsonFile = None) -> None:
    """List the architectures that run, what each is made of, and what else a config.json may ask for."""
    check_writable(json_file)
    from ostinato import cli_models

    known = cli_models.catalogue()
    put_report(lambda: cli_models.as_text(known), lambda: cli_models.as_json(known), json_file)


def _step_of(model: str) -> Target:
    """The decode step of a checkpoint, for ``ostinato graph``; on the GPU, if there is one."""
    import torch

    from ostinato.graphs.inspect.target import Target
    from ostinato.models.checkpoint import resolve_model
    from ostinato.models.step_target import step_target

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Target(model, *step_target(resolve_model(model), device))


app.add_typer(
    graph_commands(_step_of, (sys.executable, "-P", "-c", "from ostinato.cli import main; main()", "graph")),
    name="graph",
)


def _report(error: Exception, debug: bool) -> int:
    """Print one line (and the traceback where it was asked for); return the exit code."""
    if debug:
        traceback.print_exception(error)
    usage = getattr(error, "format_message", None)  # typer's own errors, whose class moved between its versions
    if usage is not None:
        message, code = usage(), 2
    elif isinstance(error, OstinatoError):
        message, code = str(error), 2 if isinstance(error, USER_MISTAKES) else 1
    else:
        message, code = f"{type(error).__name__}: {error} (unexpected: --debug shows where)", 1
    first, *more = (line.strip() for line in message.splitlines())
    print(f"error: {first} {'; '.join(more)}".rstrip(), file=sys.stderr)
    return code


@contextlib.contextmanager
def _open(model: str, engine: Given, stats: bool) -> Iterator[LLM]:
    """An engine for the time of the command."""
    from ostinato import LLM

    shown_before, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        with LLM(model, **({"max_num_seqs": 1} | engine)) as llm:  # one request at a time: nothing to compile for more
            yield llm
            if stats:
                print(llm.stats(), file=sys.stderr)
    finally:
        warnings.formatwarning = shown_before


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as a line of a terminal, without the place in our code."""
    return f"warning: {message}\n"


def _prompt(text: str | None, token_ids: str | None) -> str | list[int]:
    if token_ids is not None and text is None:
        return parse_token_ids("--token-ids", token_ids)
    if text is None or token_ids is not None:
        raise ParamError("give a PROMPT or --token-ids, one of the two")
    return text


def _checked(sampling: Given) -> Given:
    """The sampling options with lists made of text; checked before anything is loaded."""
    from ostinato import SamplingParams

    for name in sampling.keys() & {"stop_token_ids", "allowed_token_ids"}:
        sampling = sampling | {name: parse_token_ids(f"--{name.replace('_', '-')}", sampling[name])}
    # Whether min_tokens fits is known when the checkpoint's own max_tokens is.
    SamplingParams(**{name: v for name, v in sampling.items() if name != "min_tokens" or "max_tokens" in sampling})
    return sampling


def _params(llm: LLM, given: Given, defaults: bool) -> SamplingParams:
    from ostinato import SamplingParams

    return llm.default_sampling_params.sampling_params(**given) if defaults else SamplingParams(**given)


def _require_chat_template(model: str, revision: str | None) -> None:
    """Say so before the weights are loaded."""
    from ostinato.chat_template import ChatTemplate
    from ostinato.models.checkpoint import resolve_model

    if ChatTemplate.load(resolve_model(model, revision)) is None:
        raise ParamError(f"model {model!r} has no chat template; use: ostinato generate {model} PROMPT")
