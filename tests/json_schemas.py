"""JSON schemas by keyword, three hundred of them, in the manner of the public JSON-Schema-Test-Suite."""

from __future__ import annotations

import itertools
from typing import Any

Schema = dict[str, Any] | bool


def _types() -> list[Schema]:
    names = ["string", "integer", "number", "boolean", "null", "array", "object"]
    pairs = [{"type": list(pair)} for pair in itertools.combinations(names, 2)]
    return [{"type": name} for name in names] + pairs + [{"type": names}, {}, True]


def _values() -> list[Schema]:
    values: list[Any] = [
        *("", "a", "é", "日本語", "🙂", 'say "no"', "back\\slash", "line\nbreak", "\t", "\u0000", "</script>", "%s{}"),
        *(0, 1, -1, 12, 10**15, 0.5, -2.25, 1e-3, True, False, None),
        *([], [1], ["a", None], [[1], [2]], {}, {"a": 1}, {"b": {"c": [True]}}, {"é": "ü"}),
    ]
    enums = [{"enum": values[start : start + 5]} for start in range(0, len(values), 5)]
    return [{"const": value} for value in values] + enums


def _numbers() -> list[Schema]:
    kinds, lows, highs = ("integer", "number"), (-7, 0, 3), (5, 17, 100)
    both = [
        {"type": kind, low_name: low, high_name: high}
        for kind, low, high in itertools.product(kinds, lows, highs)
        for low_name, high_name in (("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"))
    ]
    one = [{"type": kind, name: 10} for kind in kinds for name in ("minimum", "maximum", "exclusiveMinimum")]
    multiples = [{"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 100} for step in (1, 2, 5, 7)]
    return both + one + multiples


def _strings() -> list[Schema]:
    lengths = [
        {"type": "string", "minLength": low, "maxLength": high} for low in (0, 1, 2, 3) for high in (3, 8, 20, 40)
    ]
    patterns = ["^a*$", "^[a-z]{2,5}$", "^\\d{3}-\\d{4}$", "^(yes|no)$", "^\\w+@\\w+\\.com$", "x", "^[A-F0-9]{8}$"]
    formats = ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "duration"]
    return [
        *lengths,
        *({"type": "string", "pattern": pattern} for pattern in patterns),
        *({"type": "string", "format": name} for name in formats),
        {"type": "string", "pattern": "^[a-c]+$", "minLength": 2, "maxLength": 4},
    ]


_ITEMS: list[Schema] = [
    {"type": "integer", "minimum": 0, "maximum": 9},
    {"type": "boolean"},
    {"enum": ["a", "b"]},
    {"type": "string", "maxLength": 3},
    {"type": ["null", "boolean"]},
    {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"], "additionalProperties": False},
]


def _arrays() -> list[Schema]:
    sized = [
        {"type": "array", "items": item, "minItems": low, "maxItems": high}
        for item in _ITEMS
        for low, high in ((0, 0), (0, 1), (1, 2), (1, 3), (2, 2), (2, 4))
    ]
    tuples = [
        {"type": "array", "prefixItems": _ITEMS[:count], "items": False, "minItems": count} for count in range(1, 7)
    ]
    rest = [{"type": "array", "prefixItems": _ITEMS[:1], "items": item, "maxItems": 4} for item in _ITEMS]
    deep = [{"type": "array", "maxItems": 2, "items": {"type": "array", "maxItems": 2, "items": i}} for i in _ITEMS]
    return sized + tuples + rest + deep


def _objects() -> list[Schema]:
    properties = dict(zip("abcdef", _ITEMS, strict=True))
    required = [
        {"type": "object", "properties": properties, "required": list(names), "additionalProperties": False}
        for size in range(4)
        for names in itertools.islice(itertools.combinations(properties, size), 5)
    ]
    named = [
        {"type": "object", "properties": {name: {"type": "null"}}, "required": [name], "additionalProperties": False}
        for name in ("", "a b", "é", 'quo"te', "back\\slash", "$ref", "日本", "a.b", "new\nline")
    ]
    others = [{"type": "object", "additionalProperties": item, "properties": {"x": True}} for item in _ITEMS]
    nested = [
        {"type": "object", "required": ["in"], "properties": {"in": {"type": "object", "properties": {"v": item}}}}
        for item in _ITEMS
    ]
    return required + named + others + nested


def _combined() -> list[Schema]:
    either = [{"anyOf": list(pair)} for pair in itertools.combinations(_ITEMS, 2)]
    one = [{"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "minimum": low}]} for low in range(5)]
    merged = [{"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + 5}]} for low in (-10, 0, 99)]
    kinds = [
        {
            "anyOf": [
                {"type": "object", "properties": {"kind": {"const": name}, "v": item}, "required": ["kind", "v"]}
                for name, item in zip("pqr", items, strict=True)
            ]
        }
        for items in itertools.combinations(_ITEMS, 3)
    ]
    return either + one + merged + kinds


def _referring() -> list[Schema]:
    direct = [{"$ref": "#/$defs/item", "$defs": {"item": item}} for item in _ITEMS]
    old = [{"type": "array", "items": {"$ref": "#/definitions/i"}, "definitions": {"i": i}} for i in _ITEMS]
    tree = {"type": "object", "properties": {"v": {"type": "integer"}}, "required": ["v"]}
    grown = [
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    **tree,
                    "properties": {"v": item, "next": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                    "additionalProperties": False,
                }
            },
        }
        for item in _ITEMS
    ]
    lists = [
        {
            "$ref": "#/$defs/l",
            "$defs": {"l": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/l"}}]}},
        }
    ]
    return [*direct, *old, *grown, *lists]


SCHEMAS: list[Schema] = [
    *_types(),
    *_values(),
    *_numbers(),
    *_strings(),
    *_arrays(),
    *_objects(),
    *_combined(),
    *_referring(),
]
