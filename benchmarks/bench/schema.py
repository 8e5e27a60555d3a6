"""The JSON Schema of ``visionllm-edge bench --json``, made from the dataclasses of `measurement`.

``schema.json`` beside this file is what others read; a test holds the two equal. After a change of
the dataclasses write it anew: ``python -m visionllm_edge.benchmarks.bench.schema > schema.json``.

A field that may be unknown is left out where it is: nothing is null. All else is always there.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from visionllm_edge.benchmarks.bench.measurement import SCHEMA, Result

__all__ = ["SCHEMA_FILE", "result_schema"]

SCHEMA_FILE = Path(__file__).with_name("schema.json")

_SCALARS: Mapping[Any, Mapping[str, object]] = {
    str: {"type": "string", "minLength": 1},
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}


def result_schema() -> dict[str, object]:
    """The schema, draft 2020-12, of plain JSON types."""
    known: dict[str, dict[str, Any]] = {}
    _of(Result, known)
    result = known.pop("Result")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A result of visionllm-edge bench",
        "$comment": "Times in ms, sizes in bytes, rates in requests a second, energy in joules.",
        **result,
        "properties": {"schema": {"const": SCHEMA}, **result["properties"]},
        "required": ["schema", *result["required"]],
        "$defs": known,
    }


def _of(kind: Any, known: dict[str, dict[str, Any]]) -> dict[str, object]:
    """The schema of a type; dataclasses go to ``known`` and are referred to."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in _SCALARS:
        return dict(_SCALARS[kind])
    if is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in known:
            known[name] = {}  # taken, should the class hold itself
            known[name] = _of_dataclass(typing.cast(type, kind), known)
        return {"$ref": f"#/$defs/{name}"}
    if origin is types.UnionType:
        (inner,) = (arg for arg in args if arg is not type(None))
        return _of(inner, known)
    if origin is tuple and args[-1] is Ellipsis:
        return {"type": "array", "items": _of(args[0], known)}
    if origin is tuple:
        items = [_of(arg, known) for arg in args]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(args[1], known)}
    raise TypeError(f"bench schema: no rule for the type {kind}")


def _of_dataclass(kind: type, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    text = inspect.getdoc(kind) or ""
    about = _attributes(text)
    properties, required = {}, []
    for field in fields(kind):
        entry = _of(hints[field.name], known)
        if field.name in about:
            entry["description"] = about[field.name]
        properties[field.name] = entry
        # Without a value such a field is not written.
        if field.default is not None:
            required.append(field.name)
    return {
        "description": text.partition("\n\n")[0].replace("\n", " "),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _attributes(text: str) -> dict[str, str]:
    """What a docstring says about each field."""
    lines = text.partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", lines, re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in found}


if __name__ == "__main__":
    print(json.dumps(result_schema(), indent=1))
