"""COCO's text form of masks, against pycocotools and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.runtime.rle import compress_counts, encode_mask, run_lengths


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    noise = [rng.random((h, w)) < p for h, w, p in [(1, 1, 0.5), (7, 5, 0.3), (64, 81, 0.5)]]
    block = np.zeros((300, 211), dtype=bool)
    block[40:200, 17:150] = True
    return [*noise, block, block.T, ~block, np.zeros((9, 4), bool), np.ones((9, 4), bool)]


@pytest.mark.parametrize("mask", masks(), ids=lambda m: "x".join(map(str, m.shape)))
def test_text_is_pycocotools_text(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode_mask(mask)
    assert ours == {"size": list(theirs["size"]), "counts": theirs["counts"].decode()}


def test_runs_go_down_the_columns_and_start_with_background() -> None:
    mask = np.array([[1, 0, 0], [1, 0, 1]], dtype=bool)
    assert run_lengths(mask) == [0, 2, 3, 1]
    assert run_lengths(~mask) == [2, 3, 1]


def test_differences_start_at_the_fourth_run() -> None:
    # By hand: 6 -> '6', 1 -> '1', 40 -> low 5 bits 01000 + more = 'X', then 1 = '1';
    # the fourth is 3 - 1 = 2.
    assert compress_counts([6, 1, 40, 3]) == "61X12"


def test_a_mask_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="bool mask"):
        encode_mask(np.zeros((3, 3), dtype=np.uint8))
