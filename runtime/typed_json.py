"""JSON to frozen dataclasses and back, checked by the types that the dataclasses declare.

Known types: str (not empty), int (not negative), ``Count`` (at least 1), float, bool, object,
other dataclasses, ``tuple[X, ...]``, ``tuple[X, Y]``, ``Mapping[str, X]``, ``X | None`` and
``int | str``.

A field with a default may be absent; a field that no dataclass declares is refused, so that a
misspelt optional field does not go unnoticed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

__all__ = ["Count", "FieldError", "json_from_object", "object_from_json"]

Count = Annotated[int, "at least 1"]

_T = TypeVar("_T")
_EXPECTED = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


class FieldError(ValueError):
    """A field is missing, unknown or of a wrong type. The message names it by its path."""


def object_from_json(kind: type[_T], value: object, where: str = "") -> _T:
    """Read parsed JSON as ``kind``; ``where`` is the path for messages.

    Raises:
        FieldError: the value does not match.
    """
    return cast(_T, _read(kind, value, where))


def json_from_object(value: object) -> object:
    """Plain JSON types. An absent optional field is left out, a required one may be null."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {
            f.name: json_from_object(item)
            for f, item in pairs
            if item is not None or not _has_default(f)
        }
    if isinstance(value, Mapping):
        return {key: json_from_object(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_from_object(item) for item in value]
    return value


def _read(kind: Any, value: object, where: str) -> object:
    origin, args = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if origin is Annotated:
        number = _read(args[0], value, where)
        if number == 0:
            raise FieldError(f"{where!r} expected a positive integer, got 0")
        return number
    if origin in (Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is tuple:
        return _read_tuple(args, value, where)
    if origin is not None:
        items = _object(value, where)
        return {key: _read(args[1], item, f"{where}.{key}") for key, item in items.items()}
    if is_dataclass(kind):
        return _read_dataclass(cast(type, kind), value, where)
    return _read_scalar(kind, value, where)


def _read_union(args: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and type(None) in args:
        return None
    kinds = [kind for kind in args if kind is not type(None)]
    if len(kinds) > 1:
        # int | str: the value's own type decides.
        return _read(str if isinstance(value, str) else int, value, where)
    return _read(kinds[0], value, where)


def _read_tuple(args: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise _wrong("a list", value, where)
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(kinds) != len(value):
        raise FieldError(f"{where!r} expected {len(kinds)} values, got {len(value)}")
    pairs = zip(kinds, value, strict=True)
    return tuple(_read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))


def _read_dataclass(kind: type, value: object, where: str) -> object:
    data = _object(value, where)
    hints = typing.get_type_hints(kind, include_extras=True)
    prefix = f"{where}." if where else ""
    unknown = sorted(data.keys() - {f.name for f in fields(kind)})
    if unknown:
        raise FieldError(f"{prefix + unknown[0]!r} is not a known field")
    given: dict[str, object] = {}
    for f in fields(kind):
        if f.name in data:
            given[f.name] = _read(hints[f.name], data[f.name], prefix + f.name)
        elif not _has_default(f):
            raise FieldError(f"{prefix + f.name!r} is missing")
    try:
        return kind(**given)
    except FieldError:
        raise
    except ValueError as e:
        raise FieldError(f"{where!r}: {e}") from e


def _read_scalar(kind: Any, value: object, where: str) -> object:
    expected = _EXPECTED[kind]
    # To Python a bool is an int; in a manifest it is a mistake.
    good = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not good or (kind is not bool and isinstance(value, bool)):
        raise _wrong(expected, value, where)
    if value == "" or (kind is int and cast(int, value) < 0):
        raise FieldError(f"{where!r} expected {expected}, not empty or negative, got {value!r}")
    return float(cast(float, value)) if kind is float else value


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong("an object", value, where)
    return value


def _wrong(expected: str, value: object, where: str) -> FieldError:
    got = "null" if value is None else type(value).__name__
    return FieldError(f"{where!r} expected {expected}, got {got}")


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING
