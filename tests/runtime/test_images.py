"""Images from strangers: what is accepted, what is refused, and how."""

from __future__ import annotations

import contextlib
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import MAX_PIXELS, load_image


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds nothing of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "ppm"])
def test_lossless_files_come_back_exactly(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    # Only WebP knows the option; the others ignore it.
    Image.fromarray(pixels).save(path, lossless=True)
    for given in (path, str(path)):
        got = load_image(given)
        assert np.array_equal(got, pixels)
        assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.writeable


def test_jpeg_and_a_wrong_suffix(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "image.txt"
    Image.fromarray(pixels).save(path, format="JPEG", quality=95)
    assert load_image(path).shape == (20, 30, 3)


def test_arrays_and_pillow_images_are_copied(pixels: np.ndarray) -> None:
    for given in (pixels, Image.fromarray(pixels), pixels[:, ::-1][:, ::-1]):
        got = load_image(given)
        assert np.array_equal(got, pixels)
        assert not np.shares_memory(got, pixels)


def test_grey(tmp_path: Path, pixels: np.ndarray) -> None:
    grey = pixels[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for given in (tmp_path / "grey.png", grey, grey[:, :, None]):
        assert np.array_equal(load_image(given), np.stack([grey] * 3, axis=2))


def test_grey_of_16_bits_is_scaled_not_cut(tmp_path: Path) -> None:
    levels = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey16.png")
    assert load_image(tmp_path / "grey16.png")[:, :, 1].tolist() == [[0, 1], [128, 255]]


def test_transparency_shows_white(tmp_path: Path, pixels: np.ndarray) -> None:
    alpha = np.full((20, 30, 1), 255, dtype=np.uint8)
    alpha[:10] = 0
    rgba = np.concatenate([pixels, alpha], axis=2)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    for given in (tmp_path / "rgba.png", rgba):
        got = load_image(given)
        assert (got[:10] == 255).all() and np.array_equal(got[10:], pixels[10:])


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "hole.png", transparency=1)
    assert load_image(tmp_path / "plain.png")[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert load_image(tmp_path / "hole.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))],
)
def test_exif_orientation(tmp_path: Path, pixels: np.ndarray, orientation: int, upright) -> None:  # type: ignore[no-untyped-def]
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "turned.png"), upright(pixels))


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=95)
    red, green, blue = load_image(tmp_path / "ink.jpg")[4, 4]
    assert red > 240 and green < 15 and blue < 15


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    got = load_image(tmp_path / "a.gif")
    assert got.shape == (6, 8, 3) and (got == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(20_000, 20_000), (8001, 8000), (9000, 9000), (12_000, 8_000)])
def test_too_large_is_refused_from_the_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(*size))
    start = time.perf_counter()
    with pytest.raises(InputError, match="limit of 64 million pixels") as refusal:
        load_image(path)
    # Decoding would fail on the empty file, and reserving the pixels would take longer.
    assert "decoded" not in str(refusal.value)
    assert time.perf_counter() - start < 1.0


def test_the_limit_itself_is_accepted_by_the_header_check(tmp_path: Path) -> None:
    path = tmp_path / "limit.png"
    path.write_bytes(png_header(8000, MAX_PIXELS // 8000))
    with pytest.raises(InputError, match="cannot be decoded"):
        load_image(path)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    image.save(tmp_path / "small.png")
    for given in (tmp_path / "small.png", image, np.asarray(image)):
        with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels; expected at least 2x2"):
            load_image(given)


def test_two_by_two_is_enough() -> None:
    assert load_image(Image.new("RGB", (2, 2))).shape == (2, 2, 3)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x00" * 4096, b"\x89PNG\r\n\x1a\n", b"GIF89a"]
)
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"photo\.png"):
        load_image(path)


def test_a_format_off_the_list(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "scan.tiff")
    with pytest.raises(InputError, match="expected one of BMP, GIF, JPEG, PNG, PPM, WEBP"):
        load_image(tmp_path / "scan.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "ppm"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for part in (0.01, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(InputError, match="cut"):
            load_image(path)


def test_damaged_files_never_raise_anything_else(tmp_path: Path, pixels: np.ndarray) -> None:
    rng = np.random.default_rng(8)
    path = tmp_path / "damaged"
    for suffix in ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM"):
        Image.fromarray(pixels).save(path, format=suffix)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(60):
            changed = whole.copy()
            changed[rng.integers(0, changed.size, 4)] = rng.integers(0, 256, 4)
            path.write_bytes(changed.tobytes())
            with contextlib.suppress(InputError):
                assert load_image(path).ndim == 3


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(InputError, match="not a regular file"):
        load_image(tmp_path)
    with pytest.raises(InputError, match=r"does not exist|not a usable file name"):
        load_image("a\0b")


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((8, 8, 3), dtype=np.float32),
        np.zeros((8, 8, 2), dtype=np.uint8),
        np.zeros((1, 8, 8, 3), dtype=np.uint8),
        Image.new("F", (8, 8)),
        Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)),
        b"bytes",
        None,
    ],
    ids=["float", "two channels", "batch", "float image", "32 bit", "bytes", "none"],
)
def test_other_things_are_refused(given: object) -> None:
    with pytest.raises(InputError, match="expected"):
        load_image(given)  # type: ignore[arg-type]
