"""From the detector's raw outputs to boxes and masks in the original picture.

Source: VisionLLM v2 (arXiv 2406.08394), evaluation: top-k over query x class, no suppression.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.resize import Taps, resize_by_taps

__all__ = ["Selection", "best_of_each", "masks", "select"]

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
# The mask head works at a quarter of the detector's input.
_MASK_STRIDE = 4


@dataclass(frozen=True)
class Selection:
    """Chosen pairs of query and class; all arrays have k rows.

    Attributes:
        scores: float32 [k], 0..1.
        labels: int64 [k], index of the class.
        queries: int64 [k], row of ``queries`` that the mask head needs.
        boxes_xyxy: float32 [k,4] in pixels of the original picture; may reach beyond it.
    """

    scores: Float
    labels: Int
    queries: Int
    boxes_xyxy: Float


def select(
    logits: Float,
    boxes: Float,
    *,
    top_k: int,
    threshold: float,
    image_size: tuple[int, int],
) -> Selection:
    """The best pairs of query and class whose score reaches the threshold.

    Args:
        logits: [Q,T]; -inf marks a class that does not exist.
        boxes: [Q,4], centre x, centre y, width, height as parts of the un-padded picture.
        top_k: how many pairs at most.
        threshold: smallest score (0 keeps all).
        image_size: (height, width) of the original picture.

    Returns:
        The pairs by descending logit; equal ones in the order of query, then class.

    Raises:
        BackendError: the outputs hold values that are not numbers.
    """
    _require_numbers(logits, boxes)
    flat = logits.reshape(-1)
    keep = min(top_k, flat.size)
    if keep < 1:
        order = np.zeros(0, dtype=np.int64)
    else:
        # Everything that reaches the k-th value, then a stable sort: ties are cut in index order
        # on every machine, which a partition alone does not promise.
        border = np.partition(flat, flat.size - keep)[flat.size - keep]
        reaching = np.flatnonzero(flat >= border)
        order = reaching[np.argsort(-flat[reaching], kind="stable")][:keep]
    scores = _sigmoid(flat[order])
    order = order[scores >= threshold].astype(np.int64)
    queries, labels = np.divmod(order, logits.shape[1])
    kept = scores[scores >= threshold]
    return Selection(kept, labels, queries, _corners(boxes[queries], image_size))


def best_of_each(logits: Float, boxes: Float, *, image_size: tuple[int, int]) -> Selection:
    """The best query of every class, in the order of the classes, whatever its score.

    Arguments and errors as :func:`select`. Of equal queries the first is taken.
    """
    _require_numbers(logits, boxes)
    labels = np.arange(logits.shape[1], dtype=np.int64)
    queries = np.argmax(logits, axis=0).astype(np.int64)
    scores = _sigmoid(logits[queries, labels])
    return Selection(scores, labels, queries, _corners(boxes[queries], image_size))


def _require_numbers(logits: Float, boxes: Float) -> None:
    if np.isnan(logits).any() or not np.isfinite(boxes).all():
        raise BackendError(
            "detector: its logits or boxes are not finite, so there is nothing to select from. "
            "Run `visionllm-edge verify` on the bundle."
        )


def _corners(boxes: Float, image_size: tuple[int, int]) -> Float:
    height, width = image_size
    centre_x, centre_y, w, h = boxes.astype(np.float32).T
    corners: Float = np.stack(
        [centre_x - w / 2, centre_y - h / 2, centre_x + w / 2, centre_y + h / 2], axis=1
    )
    corners *= np.array([width, height, width, height], dtype=np.float32)
    return corners


def masks(
    mask_logits: Float, *, valid_size: tuple[int, int], original_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Masks at the size of the original picture.

    Bilinear x4, cut to the un-padded part, bilinear to the original size, then score > 0.5.

    Args:
        mask_logits: float32 [k,h,w] at stride 4 of the padded detector input.
        valid_size: (height, width) of the un-padded part of that input.
        original_size: (height, width) of the result.

    Returns:
        bool [k,H,W].
    """
    rows = _axis_taps(mask_logits.shape[1], valid_size[0], original_size[0])
    columns = _axis_taps(mask_logits.shape[2], valid_size[1], original_size[1])
    out = np.empty((mask_logits.shape[0], *original_size), dtype=np.bool_)
    # One by one: k full-size float maps at once would be the largest memory of the whole chain.
    for i, logits in enumerate(mask_logits):
        # sigmoid(x) > 0.5 is x > 0.
        np.greater(resize_by_taps(logits, rows, columns), 0.0, out=out[i])
    return out


@functools.lru_cache(maxsize=16)
def _axis_taps(size: int, valid: int, original: int) -> Taps:
    """All three steps of one axis in one: each is linear and works per axis."""
    enlarged = Taps.bilinear(size, size * _MASK_STRIDE)
    cut = Taps(enlarged.positions[:, :valid], enlarged.weights[:, :valid])
    return cut.then(Taps.bilinear(valid, original))


def _sigmoid(logits: Float) -> Float:
    # Written with tanh so that large negative logits do not overflow.
    return (0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)
