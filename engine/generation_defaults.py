"""What a checkpoint's ``generation_config.json`` recommends. Shown to the caller, used only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ostinato.sampling_params import SamplingParams


@dataclass(frozen=True)
class GenerationDefaults:
    """The file's own values; None where it says nothing."""

    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    max_new_tokens: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GenerationDefaults:
        """Read the parsed file; absent keys are None."""
        return cls(**{name: values.get(name) for name in cls.__dataclass_fields__})

    def sampling_params(self, **overrides: Any) -> SamplingParams:
        """These values as ``SamplingParams``, with ``overrides`` on top. ``do_sample: false`` means temperature 0.

        ``ParamError`` if the file's values are out of range.
        """
        chosen: dict[str, Any] = {"max_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if self.do_sample is False:
            chosen["temperature"] = 0.0
        else:
            chosen |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        given = {name: value for name, value in chosen.items() if value is not None}
        return SamplingParams(**(given | overrides))
