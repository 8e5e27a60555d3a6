"""One object of a ``config.json``: typed access, every complaint with the path of the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from visionllm_edge.runtime.errors import ConfigError

__all__ = ["Section"]

_REQUIRED = object()


class Section:
    """One object of ``config.json``. Every complaint names the whole path of the field.

    A field that is null counts as absent.
    """

    def __init__(
        self,
        data: object,
        path: str = "",
        *,
        supported: str,
        wanted: str,
        file: str = "config.json",
    ) -> None:
        """Wrap a parsed object.

        Args:
            data: the object.
            path: where it stands in the file, for messages.
            supported: a sentence for what :meth:`expect` refuses.
            wanted: what the whole file should have been.
            file: its name, for messages.

        Raises:
            ConfigError: not an object.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"{file}: {path + ': ' if path else ''}expected an object, got "
                f"{'nothing' if data is None else type(data).__name__}. "
                f"Give the {wanted}."
            )
        self.data: Mapping[str, object] = data
        self.path = path
        self._supported = supported
        self._wanted = wanted
        self._file = file

    def __contains__(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(key) is not None

    def section(self, key: str, *, optional: bool = False) -> Section:
        """The object under ``key``; an empty one if it is absent and may be."""
        data = self.data.get(key)
        return Section(
            {} if data is None and optional else data,
            self._name(key),
            supported=self._supported,
            wanted=self._wanted,
            file=self._file,
        )

    def expect(self, key: str, *wanted: object, optional: bool = False) -> None:
        """Refuse every value but the wanted ones; absence only if ``optional``."""
        got = self.data.get(key, _REQUIRED)
        if (got is _REQUIRED or got is None) and optional:
            return
        if not any(got == want and isinstance(got, type(want)) for want in wanted):
            shown = "nothing" if got is _REQUIRED else repr(got)
            raise ConfigError(
                f"{self._file}: {self._name(key)}: expected "
                f"{' or '.join(repr(want) for want in wanted)}, got {shown}. "
                f"{self._supported}"
            )

    def integer(self, key: str, default: int | None = None, *, least: int | None = 1) -> int:
        """An integer of at least ``least``."""
        got = default if key not in self else self.data[key]
        if not _is_integer(got) or (least is not None and got < least):
            kind = {None: "an integer", 1: "a positive integer"}.get(least, f"at least {least}")
            raise self._wrong(key, kind, got)
        return got

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        """A list of ``count`` positive integers."""
        got = self.data.get(key)
        if not isinstance(got, list) or len(got) != count or not all(map(_is_positive, got)):
            raise self._wrong(key, f"{count} positive integers", got)
        return tuple(got)

    def sizes(self, key: str, default: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """A list of (height, width) in positive multiples of 32."""
        if key not in self:
            return default
        got = self.data[key]
        pairs = [p for p in got if isinstance(p, list)] if isinstance(got, list) else []
        ok = all(len(p) == 2 and all(_is_positive(x) and x % 32 == 0 for x in p) for p in pairs)
        if not isinstance(got, list) or not got or len(pairs) != len(got) or not ok:
            raise self._wrong(key, "pairs [height, width] of positive multiples of 32", got)
        return tuple((h, w) for h, w in pairs)

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        got = default if key not in self else self.data[key]
        if isinstance(got, bool) or not isinstance(got, int | float) or got <= 0:
            raise self._wrong(key, "a positive number", got)
        return float(got)

    def text(self, key: str, default: str) -> str:
        """A string."""
        got = default if key not in self else self.data[key]
        if not isinstance(got, str):
            raise self._wrong(key, "a string", got)
        return got

    def texts(self, key: str) -> dict[str, str]:
        """An object of strings; empty if it is absent."""
        got = self.data.get(key) or {}
        if not isinstance(got, Mapping) or not all(isinstance(v, str) for v in got.values()):
            raise self._wrong(key, "an object of strings", got)
        return dict(got)

    def _name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _wrong(self, key: str, expected: str, got: object) -> ConfigError:
        shown = "nothing" if got is None else repr(got)
        return ConfigError(f"{self._file}: {self._name(key)}: expected {expected}, got {shown}.")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return _is_integer(value) and value > 0
