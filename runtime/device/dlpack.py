"""DLPack, both ways, by ctypes: the C struct that array libraries pass to each other.

Only the unversioned struct is written and read; every library still takes and gives it when not
asked for another. Source: DLPack specification v0.8, ``dlpack.h``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

__all__ = [
    "DLPACK_CPU",
    "DLPACK_CUDA",
    "DLPACK_CUDA_HOST",
    "DLPACK_CUDA_MANAGED",
    "Described",
    "capsule_from_memory",
    "describe_capsule",
]

DLPACK_CPU = 1
DLPACK_CUDA = 2
DLPACK_CUDA_HOST = 3
DLPACK_CUDA_MANAGED = 13

_NAME = b"dltensor"
# (code, bits) of each element type: 0 signed, 1 unsigned, 2 float, 4 bfloat, 6 bool.
_CODES = {
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "int8": (0, 8),
    "uint8": (1, 8),
    "bool": (6, 8),
}
_TYPES = {code: name for name, code in _CODES.items()}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER))


def _python_api(name: str, result: object, *arguments: object) -> ctypes._FuncPointer:
    # A prototype of our own: ctypes.pythonapi's functions are shared by the whole process.
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))  # type: ignore[arg-type]


# The destructor gets the capsule while it dies: as a bare pointer, so that nobody counts it again.
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = _python_api("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR)
_is_valid = _python_api("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer = _python_api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_dying_is_valid = _python_api("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_dying_pointer = _python_api(
    "PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
)

# What was handed out and not given back, by the address of its struct.
_alive: dict[int, tuple[object, ...]] = {}


def _delete(managed: ctypes._Pointer[_Managed]) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


def _destroy(capsule: int) -> None:
    # A consumer renames the capsule and calls the deleter itself.
    if _dying_is_valid(capsule, _NAME):
        _alive.pop(_dying_pointer(capsule, _NAME), None)


_deleter = _DELETER(_delete)
_destructor = _DESTRUCTOR(_destroy)


@dataclass(frozen=True)
class Described:
    """What a capsule holds.

    Attributes:
        address: of the first element.
        device: DLPack's device type and number.
        dtype: one of the port types, or the raw ``code:bits`` of another.
        shape: lengths.
        contiguous: row-major without gaps.
    """

    address: int
    device: tuple[int, int]
    dtype: str
    shape: tuple[int, ...]
    contiguous: bool


def capsule_from_memory(
    address: int, *, dtype: str, shape: tuple[int, ...], device: tuple[int, int], owner: object
) -> object:
    """A capsule over contiguous memory; ``owner`` lives until its consumer is done."""
    code, bits = _CODES[dtype]
    managed = _Managed()
    lengths = (ctypes.c_int64 * len(shape))(*shape)
    managed.tensor = _Tensor(
        data=address,
        device_type=device[0],
        device_id=device[1],
        ndim=len(shape),
        code=code,
        bits=bits,
        lanes=1,
        shape=lengths,
        strides=None,
        byte_offset=0,
    )
    managed.deleter = _deleter
    place = ctypes.addressof(managed)
    _alive[place] = (managed, lengths, owner)
    return _new(place, _NAME, _destructor)


def describe_capsule(capsule: object) -> Described:
    """Read a capsule without consuming it: keep it as long as the memory is used.

    Raises:
        ValueError: not an unused DLPack capsule.
    """
    if not _is_valid(capsule, _NAME):
        raise ValueError(f"expected an unused 'dltensor' capsule, got {capsule!r}")
    tensor = _Managed.from_address(_pointer(capsule, _NAME)).tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    key = (tensor.code, tensor.bits)
    plain = tensor.lanes == 1 and key in _TYPES
    contiguous = True
    if tensor.strides:
        expected = 1
        for axis in reversed(range(tensor.ndim)):
            contiguous &= shape[axis] == 1 or tensor.strides[axis] == expected
            expected *= shape[axis]
    return Described(
        address=(tensor.data or 0) + tensor.byte_offset,
        device=(tensor.device_type, tensor.device_id),
        dtype=_TYPES[key] if plain else f"{tensor.code}:{tensor.bits}x{tensor.lanes}",
        shape=shape,
        contiguous=contiguous,
    )
