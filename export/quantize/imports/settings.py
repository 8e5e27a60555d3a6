"""Reads a `quantization_config` field by field and refuses, by name, what is not supported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from visionllm_edge.runtime.errors import ConfigError

__all__ = ["Settings"]

_Value = TypeVar("_Value")
_MISSING = object()


class Settings:
    """A section of the configuration.

    Args:
        data: parsed JSON.
        path: name of the section, for messages.
    """

    def __init__(self, data: Mapping[str, object], path: str = "quantization_config") -> None:
        """Take a section."""
        self._data, self._path = data, path

    def __len__(self) -> int:
        """Number of fields."""
        return len(self._data)

    def names(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(self._data)

    def expect(self, field: str, *allowed: _Value, default: object = _MISSING) -> _Value:
        """The value of a field, one of those allowed.

        Raises:
            ConfigError: missing without a default, or another value.
        """
        value = self._data.get(field, default)
        for choice in allowed:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        found = "nothing" if value is _MISSING else repr(value)
        raise ConfigError(
            f"{self._path}.{field}: expected {' or '.join(map(repr, allowed))}, got {found}. "
            "Compile the checkpoint that it was quantised from."
        )

    def section(self, field: str) -> Settings:
        """A field that is a section itself.

        Raises:
            ConfigError: it is not.
        """
        value = self._data.get(field)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._path}.{field}: expected an object, got {value!r}.")
        return Settings(value, f"{self._path}.{field}")
