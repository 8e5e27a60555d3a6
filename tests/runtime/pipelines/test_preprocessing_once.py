"""A picture is decoded, and made ready for each of its readers, once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionllm_edge.runtime import VisionLLM, images, preprocess
from visionllm_edge.runtime.pipelines import picture as picture_module
from visionllm_edge.runtime.pipelines import visionllm_v2

CLASSES = ["a", "b"]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each piece of work on pixels was done."""
    done: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        inner = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            done[name] += 1
            return inner(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(picture_module, "load_image")
    counted(images, "_decoded")
    counted(visionllm_v2, "clip_tiles")
    counted(preprocess, "resize_bilinear")
    counted(preprocess, "_resized")
    counted(preprocess, "_normalised")
    counted(preprocess, "_padded")
    return done


@pytest.fixture
def path(photo: Any, tmp_path: Path) -> Path:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("overlap", [False, True])
def test_each_piece_of_work_once(full: Any, path: Path, work: Counter[str], overlap: bool) -> None:
    full.pipeline.overlap = overlap
    model = VisionLLM(full.pipeline)
    model.segment(path, CLASSES)
    # For the language model: its tiles, and the whole picture beside them if there are several.
    tiles = work.pop("_resized")
    assert tiles <= 2
    assert work == {
        "load_image": 1, "_decoded": 1, "clip_tiles": 1, "_normalised": 1,
        "resize_bilinear": 1, "_padded": 1,
    }  # fmt: skip
    work.clear()
    model.pose(path, ["a"], ["nose"])  # another decoder wants another size
    assert work == {"load_image": 1, "_decoded": 1, "_padded": 1}
    work.clear()
    model.ground(path, ["one", "two", "three"], masks=True)
    model.chat(path).send("hello")
    assert work == {"load_image": 2, "_decoded": 2}, "reading it is how it is known again"


def test_an_array_is_copied_and_takes_no_way_round(
    photo: Any, work: Counter[str], toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = images.load_image(photo)
    assert not np.shares_memory(got, photo) and np.array_equal(got, photo)
    assert not work["_decoded"]
    turned = photo[::-1, ::-1]
    assert images.load_image(turned).flags.c_contiguous
    assert np.array_equal(images.load_image(turned), turned)


def test_equal_pixels_are_one_picture_and_others_are_not(toy: Any, photo: Any) -> None:
    known = toy.pipeline.open(photo)
    assert toy.pipeline.open(photo.copy()) is known
    assert toy.pipeline.open(photo.reshape(48, 40, 3)) is not known
    other = photo.copy()
    other[-1, -1, -1] ^= 1
    assert toy.pipeline.open(other).key != known.key
