"""Reads the protobuf wire format: fields by number, without a schema.

As much as it takes to find tensors and nodes in an ONNX file on a device that has no onnx package.
Message layouts are the business of the callers.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["BYTES", "VARINT", "fields", "varint"]

VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5


def fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of each field; groups, which ONNX never had, are refused.

    Raises:
        ValueError: not a message.
        IndexError: it ends in the middle of a field.
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = varint(message, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"field {number} ends behind its message")
        yield number, wire, message[at : at + size]
        at += size


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length and the position behind it.

    Raises:
        ValueError: more than 64 bits.
        IndexError: it ends in the middle.
    """
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
