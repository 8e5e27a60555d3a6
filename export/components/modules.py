"""A ``ModuleList`` whose type says what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from torch import nn

__all__ = ["module_list"]

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """An ``nn.ModuleList`` of modules of one kind."""
    return cast("Sequence[M]", nn.ModuleList(modules))
