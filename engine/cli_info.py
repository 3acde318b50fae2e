"""``ostinato info``: a plan as text and as JSON. Loads no weights."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ostinato.generation_defaults import GenerationDefaults
from ostinato.models.checkpoint import read_generation_config
from ostinato.plan import Plan


def as_text(plan: Plan) -> str:
    """The plan, and what ``--defaults`` would use."""
    recommended = ", ".join(f"{name} {value}" for name, value in _recommended(plan).items())
    rows = [*plan.rows(), ("--defaults", recommended or "none")]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def as_json(plan: Plan) -> str:
    """The same as one JSON object: sizes in bytes, the whole spec."""
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    values["kv_cache_bytes"] = plan.kv_cache_bytes
    values["default_sampling_params"] = _recommended(plan)
    return json.dumps(values, default=_plain, indent=2)


def _recommended(plan: Plan) -> dict[str, Any]:
    """What ``generation_config.json`` says."""
    values = dataclasses.asdict(GenerationDefaults.from_json(read_generation_config(plan.folder)))
    return {name: value for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """What JSON has no type for: dataclasses become objects, sets lists, types and paths their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value).removeprefix("torch.")
