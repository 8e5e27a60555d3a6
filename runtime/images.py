"""Pictures in, RGB arrays out: the one place that opens an image nobody has checked.

What is accepted, and what becomes of it:

1. Files of the formats in ``FORMATS``, told by their content and not by their name.
2. At least 2x2 and at most 64 million pixels. The size is read from the header, so an image that
   would fill the memory is refused before a pixel of it is decoded.
3. EXIF orientation is applied; grey, palette, CMYK and 16-bit grey images become 8-bit RGB.
4. Transparency is laid over white, which is what a viewer shows.
5. Of an animation or a multi-picture file the first frame is taken.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from visionllm_edge.runtime.errors import InputError

__all__ = ["FORMATS", "MAX_PIXELS", "MIN_SIDE", "ImageLike", "load_image"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
MAX_PIXELS = 64_000_000
MIN_SIDE = 2

ImageLike = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)
# What Pillow's decoders raise on damaged content, by reading them and by trying.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error)


def load_image(image: ImageLike) -> npt.NDArray[np.uint8]:
    """The picture as a contiguous uint8 array [H,W,3] in RGB, owned by the caller.

    Args:
        image: a path, a Pillow image, or a uint8 array [H,W], [H,W,1], [H,W,3] (RGB) or
            [H,W,4] (RGBA).

    Raises:
        InputError: missing, not an image, damaged, too small or too large.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        _check_size(*image.size, "image")
        return _decoded(image, "image")
    if isinstance(image, (str, os.PathLike)):
        return _from_file(Path(image))
    raise InputError(
        f"image: expected a path, a Pillow image or a uint8 array, got {type(image).__name__}"
    )


def _from_array(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    _check_array(array)
    if array.ndim == 3 and array.shape[2] == 3:
        return np.array(array, order="C")
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return _rgb_from_pillow(Image.fromarray(np.ascontiguousarray(flat)), "image array")


def _from_file(path: Path) -> npt.NDArray[np.uint8]:
    what = f"image {str(path)!r}"
    try:
        is_file = path.is_file()
    except ValueError as e:  # a NUL byte in the name, on Python 3.10 to 3.12
        raise InputError(f"{what}: not a usable file name ({e})") from e
    if not is_file:
        state = "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"{what} {state}. Check the path.")
    with warnings.catch_warnings():
        # Pillow warns between its own two limits; ours is lower than both and refuses.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=FORMATS) as opened:
                _check_size(*opened.size, what)
                return _decoded(opened, what)
        except UnidentifiedImageError as e:
            raise InputError(
                f"{what}: not an image in a known format; expected one of {', '.join(FORMATS)}. "
                "Convert the file, or check that it is the right one."
            ) from e
        except Image.DecompressionBombError as e:
            raise InputError(f"{what}: larger than {_limit()} ({e}). Scale it down first.") from e
        except _DECODE_ERRORS as e:
            raise InputError(f"{what}: could not be read ({e})") from e


def _decoded(image: Image.Image, what: str) -> npt.NDArray[np.uint8]:
    try:
        image.load()
    except _DECODE_ERRORS as e:
        raise InputError(
            f"{what}: damaged or cut short, its pixels cannot be decoded ({e}). "
            "Copy or save it again."
        ) from e
    return _rgb_from_pillow(_upright(image, what), what)


def _upright(image: Image.Image, what: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (*_DECODE_ERRORS, TypeError) as e:
        _log.warning("%s: EXIF data unreadable (%s), used as stored", what, e)
        return image


def _rgb_from_pillow(image: Image.Image, what: str) -> npt.NDArray[np.uint8]:
    _check_size(*image.size, what)
    if image.mode == "RGB":
        return np.array(image, dtype=np.uint8, order="C")
    if image.mode == "F":
        raise InputError(
            f"{what}: floating point pixels have no agreed range; expected 8-bit or 16-bit ones"
        )
    if image.mode.startswith("I"):
        image = _grey8_from_grey16(image, what)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, rgba)
    return np.array(image.convert("RGB"), dtype=np.uint8, order="C")


def _grey8_from_grey16(image: Image.Image, what: str) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{what}: grey values outside 0..65535; expected 8-bit or 16-bit ones")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _check_array(array: npt.NDArray[np.uint8]) -> None:
    shape = tuple(array.shape)
    if array.dtype != np.uint8:
        raise InputError(
            f"image array: expected dtype uint8 with values 0..255, got {array.dtype}. "
            "Scale and cast it first."
        )
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))):
        raise InputError(
            f"image array: expected shape [H,W], [H,W,1], [H,W,3] or [H,W,4], got {list(shape)}"
        )
    _check_size(shape[1], shape[0], "image array")


def _check_size(width: int, height: int, what: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{what}: {width}x{height} pixels; expected at least {MIN_SIDE}x{MIN_SIDE}"
        )
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{what}: {width}x{height} pixels is more than {_limit()}. Scale it down first."
        )


def _limit() -> str:
    return f"the limit of {MAX_PIXELS // 1_000_000} million pixels"
