"""As much of JSON Schema as the schema of a result uses; an unknown keyword is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["errors"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_SAYS_NOTHING = {"$schema", "$comment", "$defs", "title", "description"}


def errors(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a value, each with its place."""
    yield from _errors(value, schema, root, "$")


def _errors(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> Iterator[str]:
    for keyword, wanted in schema.items():
        if keyword in _SAYS_NOTHING:
            continue
        if keyword == "$ref":
            yield from _errors(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, where)
        elif keyword == "type":
            good = isinstance(value, _TYPES[wanted])
            if not good or (isinstance(value, bool) and wanted != "boolean"):
                yield f"{where}: expected {wanted}, got {value!r}"
                return
        elif keyword == "const":
            if value != wanted:
                yield f"{where}: expected {wanted!r}, got {value!r}"
        elif keyword == "minimum":
            if value < wanted:
                yield f"{where}: {value} is less than {wanted}"
        elif keyword in ("minLength", "minItems"):
            if len(value) < wanted:
                yield f"{where}: shorter than {wanted}"
        elif keyword == "required":
            yield from (f"{where}.{name}: missing" for name in wanted if name not in value)
        elif keyword == "properties":
            for name in wanted.keys() & value.keys():
                yield from _errors(value[name], wanted[name], root, f"{where}.{name}")
        elif keyword == "additionalProperties":
            for name in value.keys() - schema.get("properties", {}).keys():
                if wanted is False:
                    yield f"{where}.{name}: not known"
                else:
                    yield from _errors(value[name], wanted, root, f"{where}.{name}")
        elif keyword == "prefixItems":
            for index, (item, kind) in enumerate(zip(value, wanted, strict=False)):
                yield from _errors(item, kind, root, f"{where}[{index}]")
        elif keyword == "items":
            first = len(schema.get("prefixItems", ()))
            for index, item in enumerate(value[first:], start=first):
                if wanted is False:
                    yield f"{where}[{index}]: one too many"
                else:
                    yield from _errors(item, wanted, root, f"{where}[{index}]")
        else:
            raise AssertionError(f"no rule for {keyword!r}")
