"""A model without an engine: to look into, to compare, to build upon. No scheduler, no graph, no cache that is kept.

``load`` takes a checkpoint, or a config.json as a dictionary, and gives a ``Model``: ``model(input_ids)`` is hidden
states, ``model.compute_logits(hidden)`` logits.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ostinato.layers.errors import ConfigError, ParamError
from ostinato.layers.norm import GemmaNorm
from ostinato.models.checkpoint import read_config, resolve_model
from ostinato.models.config_json import ConfigJson
from ostinato.models.config_reads import watching
from ostinato.models.config_report import Reads
from ostinato.models.decoder import Decoder
from ostinato.models.registry import architectures, family_for
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.load import load_weights
from ostinato.models.whole import hidden_states


class Model(nn.Module):
    """A decoder that is called with token ids. ``spec`` says what it is, ``decoder`` holds its parameters."""

    def __init__(self, decoder: Decoder, spec: ModelSpec) -> None:
        super().__init__()
        self.decoder = decoder
        self.spec = spec

    def forward(self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor | None = None) -> Tensor:
        """Final hidden states for ids ``[tokens]`` (one sequence) or ``[batch, seq]``: the same and ``hidden_size``.

        ``inputs_embeds`` stands for what the embedding gives, with ``hidden_size`` as its last dimension. Sequences of
        different lengths may be padded on the right: no token sees what comes after it. ``ParamError`` for a shape, an
        id or a length that cannot be.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ParamError("give input_ids or inputs_embeds, and not both")
        leading = self._check_ids(input_ids) if inputs_embeds is None else self._check_embeds(inputs_embeds)
        batch, length = (1, *leading)[-2:]
        weight = self._weight()

        def enter(positions: Tensor) -> Tensor:
            if inputs_embeds is not None:
                return self.decoder.add_positions(inputs_embeds.flatten(0, -2).to(weight), positions)
            return self.decoder.embed_tokens(cast("Tensor", input_ids).long().flatten(), positions)

        with torch.no_grad():
            out = hidden_states(self.decoder, [length] * batch, weight.dtype, weight.device, enter)
        return out.view(*leading, self.spec.hidden_size)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """``[..., hidden_size]`` to ``[..., vocab_size]``. ``ParamError`` for another last dimension."""
        size = self.spec.hidden_size
        if not isinstance(hidden, Tensor) or hidden.dim() == 0 or hidden.shape[-1] != size:
            raise ParamError(f"hidden: expected a tensor [..., {size}], got {_shown(hidden)}")
        with torch.no_grad():
            rows = hidden.flatten(0, -2) if hidden.dim() > 1 else hidden[None]
            logits = self.decoder.compute_logits(rows.to(self._weight()))
        return logits.view(*hidden.shape[:-1], self.spec.vocab_size)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """What goes into the first layer, learned positions left out: fit to be changed and given as inputs_embeds."""
        self._check_ids(input_ids)
        with torch.no_grad():
            return self.decoder.embed_only(input_ids.long())

    def _weight(self) -> Tensor:
        """Any parameter: all have one dtype and one device."""
        return next(self.decoder.parameters())

    def _check_ids(self, input_ids: object) -> tuple[int, ...]:
        kinds = (torch.int64, torch.int32)
        if not isinstance(input_ids, Tensor) or input_ids.dim() not in (1, 2) or input_ids.dtype not in kinds:
            raise ParamError(f"input_ids: expected an int64 tensor [tokens] or [batch, seq], got {_shown(input_ids)}")
        self._check_length(tuple(input_ids.shape), input_ids.shape[-1])
        low, high = (int(value) for value in input_ids.aminmax())
        if low < 0 or high >= self.spec.vocab_size:
            wanted = f"ids from 0 to {self.spec.vocab_size - 1}"
            raise ParamError(f"input_ids: expected {wanted}, got {low if low < 0 else high}")
        return tuple(input_ids.shape)

    def _check_embeds(self, embeds: object) -> tuple[int, ...]:
        size = self.spec.hidden_size
        if not isinstance(embeds, Tensor) or embeds.dim() not in (2, 3) or embeds.shape[-1] != size:
            wanted = f"a tensor [tokens, {size}] or [batch, seq, {size}]"
            raise ParamError(f"inputs_embeds: expected {wanted}, got {_shown(embeds)}")
        self._check_length(tuple(embeds.shape[:-1]), embeds.shape[-2])
        return tuple(embeds.shape[:-1])

    def _check_length(self, leading: tuple[int, ...], length: int) -> None:
        longest = self.spec.max_position_embeddings
        if 0 in leading or length > longest:
            raise ParamError(f"expected sequences of 1 to {longest:,} tokens, got {list(leading)}")


def load(
    model: str | Path | Mapping[str, object],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    seed: int = 0,
) -> Model:
    """A model from a folder, a hub id or "demo"; or from a config.json as a dictionary, with random weights.

    ``dtype``: "auto" is the checkpoint's own. Random weights are those of ``seed``: normal with the config's
    ``initializer_range`` (0.02), norms one, biases zero. ``ModelLoadError`` as by ``LLM``.
    """
    if not isinstance(model, str | Path | Mapping):
        raise ConfigError(f"model: expected a folder, a hub id, 'demo' or a dictionary, got {type(model).__name__}")
    place = _device(device)
    raw = model if isinstance(model, Mapping) else read_config(folder := resolve_model(model, revision))
    family = family_for(raw)
    spec = family.spec(raw)
    kind = _dtype(spec.dtype if dtype == "auto" else dtype)
    with torch.device("meta"):
        decoder = family.build(spec)
    if isinstance(model, Mapping):
        _fill_at_random(decoder, place, kind, raw, seed)
    else:
        load_weights(decoder, family, spec, folder, place, kind)
    return Model(decoder, spec).eval()


def constructor(name: str) -> Callable[..., Model]:
    """``Qwen3`` for "Qwen3": a function that makes the model of its keyword arguments, as config.json names them.

    Whatever ends in ForCausalLM or LMHeadModel goes by the name before that. ``AttributeError`` for another name.
    """
    possible = {f"{name}ForCausalLM", f"{name}LMHeadModel"} & set(architectures())
    if not possible:
        raise AttributeError(f"ostinato.models has no {name!r}; models: {', '.join(public_names())}")
    architecture = possible.pop()

    def make(*, device: str = "cpu", dtype: str = "auto", seed: int = 0, **config: object) -> Model:
        values = {"architectures": [architecture], **config}
        _refuse_unread(name, values)
        return load(values, device=device, dtype=dtype, seed=seed)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"A {architecture} with random weights; keywords are the fields of its config.json."
    return make


def public_names() -> list[str]:
    """The names that ``constructor`` knows."""
    return [name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") for name in architectures()]


def _refuse_unread(name: str, values: Mapping[str, object]) -> None:
    """``ConfigError`` for a keyword that this architecture does not look at: a slip of the pen, most likely."""
    reads = Reads(values)
    with watching(reads.note):
        watched = ConfigJson(values).values
        family_for(watched).spec(watched)
    report = reads.report(complete=True)
    for key in report.ignored or ():
        near = difflib.get_close_matches(key, [*report.read, *report.defaults, *report.absent], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name}: nothing reads {key!r} of a config.json of this architecture{hint}")


def _shown(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device: expected 'cpu' or 'cuda', got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {str(name)!r} was asked for, but torch {torch.__version__} sees no CUDA device")
    return device


def _dtype(name: str | torch.dtype) -> torch.dtype:
    kind = getattr(torch, name, None) if isinstance(name, str) else name
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype: expected 'auto', 'float32', 'bfloat16' or 'float16', got {name!r}")
    return kind


def _fill_at_random(
    decoder: nn.Module, device: torch.device, dtype: torch.dtype, raw: Mapping[str, object], seed: int
) -> None:
    """Parameters in place of the empty ones on ``meta``; a tied head stays tied."""
    given = raw.get("initializer_range", 0.02)
    spread = float(given) if isinstance(given, int | float) else 0.02
    generator = torch.Generator(device="cpu").manual_seed(seed)
    decoder.to_empty(device=device)
    decoder.to(dtype)
    for module in decoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and name != "bias":
                drawn = torch.randn(parameter.shape, generator=generator) * spread
                parameter.data.copy_(drawn)
            else:
                parameter.data.fill_(float(name == "weight" and not isinstance(module, GemmaNorm)))
        make_buffers = getattr(module, "make_buffers", None)
        if make_buffers is not None:
            make_buffers(device)
