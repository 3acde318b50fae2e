"""The command line's options that are fields of `EngineConfig` and `SamplingParams`, and how commands take them.

A group of options is a function that is never called: its parameters are the options, all None when not given. A
command decorated with `taking` gets those that were given, as one dict for each group. Imports no torch.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ostinato.layers.errors import ParamError

Group = Callable[..., None]
Given = dict[str, Any]


def engine_options(
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto (the checkpoint's), bfloat16, float16 or float32.")] = None,
    execution: Annotated[str | None, typer.Option(help="graph, compile, eager or emulate.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of one request, prompt and output.")] = None,
    kv_cache_memory: Annotated[
        str | None, typer.Option(help="Bytes, or like 2GiB, '65536 tokens', '4096 blocks'.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests that run at once.")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="auto, triton, flash or torch.")] = None,
    model_impl: Annotated[str | None, typer.Option(help="auto, ostinato or transformers (its own model code).")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
) -> None:
    """Options of `EngineConfig`; it checks the values."""


def sampling_options(
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens; 0 from all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens that reach it.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens less likely than this part of the first.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same tokens.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: tokens seen before get unlikelier.")
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Taken from the logits of tokens in the answer.")
    ] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="The same, for each time they are there.")] = None,
    allowed_token_ids: Annotated[str | None, typer.Option(help="Draw these tokens only, as in 1,2,3.")] = None,
    bad_words: Annotated[list[str] | None, typer.Option(help="Never write this; may be repeated.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Generate at most so many tokens.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Do not stop before so many.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    stop_token_ids: Annotated[str | None, typer.Option(help="Stop at these tokens, as in 1,2,3.")] = None,
    ignore_eos: Annotated[bool | None, typer.Option("--ignore-eos", help="Go on after end-of-sequence.")] = None,
    include_stop_str_in_output: Annotated[
        bool | None, typer.Option("--include-stop-str-in-output", help="Show what stopped it too.")
    ] = None,
    skip_special_tokens: Annotated[bool | None, typer.Option(help="Leave special tokens out of the text.")] = None,
    cache_salt: Annotated[str | None, typer.Option(help="Share cached prefixes with equal salts only.")] = None,
    enable_prefix_caching: Annotated[bool | None, typer.Option(help="Read and feed the prefix cache.")] = None,
) -> None:
    """Options of `SamplingParams` that make sense for one text in a terminal; it checks the values."""


def taking(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of each group, and what was given of them as the argument of the group's name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        options = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            given = {
                group: {name: values[name] for name in names if values[name] not in (None, [])}
                for group, names in options.items()
            }
            command(**{name: values[name] for name in own if name not in groups}, **given)

        parameters = [parameter for name, parameter in own.items() if name not in groups]
        parameters += [parameter for names in options.values() for parameter in names.values()]
        ordered = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        wrapper.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
        del wrapper.__wrapped__
        return wrapper

    return decorate


def parse_token_ids(option: str, text: str) -> list[int]:
    """Ids from ``"1,2,3"`` or ``"1 2 3"``. Raises ParamError that names the option."""
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    if not parts or not all(re.fullmatch(r"-?\d{1,18}", part) for part in parts):
        raise ParamError(f"{option}: expected token ids as in 1,2,3; got {text!r:.80}")
    return [int(part) for part in parts]
