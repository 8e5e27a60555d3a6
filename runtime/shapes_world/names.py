"""The vocabulary of the shapes world: which shapes and colours there are."""

from __future__ import annotations

__all__ = ["COLORS", "COLOR_RGB", "SHAPES"]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "person")

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")

# Far enough from each other, and saturated enough against the grey-ish backgrounds, that a person
# names each of them at once even after the jitter of an item.
COLOR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 40),
    "green": (36, 150, 60),
    "blue": (40, 80, 215),
    "yellow": (236, 214, 48),
    "purple": (138, 48, 168),
    "orange": (242, 132, 28),
}
