"""Forms of text that are small to write and deep, or large, to compile."""

from __future__ import annotations

import json
from collections.abc import Callable

from ostinato.structured_outputs import StructuredOutputsParams


def rules(count: int, body: str) -> str:
    """A Lark grammar in which each rule leads to the next one; ``body`` has ``NEXT`` in its place."""
    chain = [f"a{number}:{body.replace('NEXT', f'a{number + 1}')}" for number in range(count)]
    return "\n".join(["start: a0", *chain, f'a{count}:"x"'])


def references(count: int, schema: str) -> str:
    """A schema of definitions, each of which refers to the next one; ``schema`` has ``NEXT`` in its place."""
    chain = [f'"{number}":{schema.replace("NEXT", reference(number + 1))}' for number in range(count)]
    return f'{{"$ref":"#/$defs/0","$defs":{{{",".join(chain)},"{count}":true}}}}'


def reference(number: int) -> str:
    return json.dumps({"$ref": f"#/$defs/{number}"})


def nested(depth: int, inner: str) -> str:
    return '{"items":' * depth + inner + "}" * depth


FORMS: dict[str, Callable[[], StructuredOutputsParams]] = {
    "rules in a chain": lambda: StructuredOutputsParams(grammar=rules(5_000, "NEXT")),
    "rules in a chain, with text": lambda: StructuredOutputsParams(grammar=rules(3_600, '"x" NEXT')),
    "references in a chain": lambda: StructuredOutputsParams(json=references(2_600, '{"items":NEXT}')),
    "references, each deep": lambda: StructuredOutputsParams(json=references(100, nested(100, "NEXT"))),
    "doubling references": lambda: StructuredOutputsParams(json=references(60, '{"allOf":[NEXT,NEXT]}')),
    "patterns that meet": lambda: StructuredOutputsParams(
        json={"allOf": [{"type": "string", "pattern": f"^.*a{chr(98 + number)}.*$"} for number in range(16)]}
    ),
    "a nested schema": lambda: StructuredOutputsParams(json=nested(900, "true")),
    "parentheses of a regex": lambda: StructuredOutputsParams(regex="(" * 8_000 + "a" + ")" * 8_000),
    "counted repetitions": lambda: StructuredOutputsParams(regex="(((a{1000}){1000}){1000}){1000}"),
    "parentheses of a grammar": lambda: StructuredOutputsParams(
        grammar="start: " + "(" * 30_000 + '"a"' + ")" * 30_000
    ),
}
