"""What the object and the keypoint decoder share: how a picture becomes a backbone's maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import DetectorSpec, Normalization, PoseSpec
from visionllm_edge.runtime.pipelines.picture import DetectorFeatures
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.preprocess import DetectorInput

__all__ = ["backbone_features", "constants_of"]


def backbone_features(
    stages: Stages,
    stage: str,
    rgb: NDArray[np.uint8],
    spec: DetectorSpec | PoseSpec,
    constants: Normalization,
    prepare: Callable[..., DetectorInput],
    *,
    levels: Sequence[int],
) -> DetectorFeatures:
    """Prepare a picture and run a backbone on it.

    Args:
        stages: of the bundle.
        stage: name of the backbone.
        rgb: the picture, uint8 ``[H, W, 3]``.
        spec: sizes of the decoder.
        constants: of its pixels.
        prepare: ``detector_input`` or ``pose_input``.
        levels: the maps that are kept, in this order.
    """
    prepared = prepare(
        rgb,
        shortest=spec.shortest_edge,
        longest=spec.longest_edge,
        divisor=spec.divisor,
        buckets=spec.buckets,
        mean=constants.mean,
        std=constants.std,
    )
    maps = stages.get(stage, prepared.bucket).run_kept({"pixels": prepared.pixels})
    return DetectorFeatures(prepared, tuple(maps[f"map{level}"] for level in levels))


def constants_of(
    bundle: Bundle, decoder: str, stages: Sequence[str], constants: Normalization | None
) -> Normalization:
    """The constants of a decoder's pixels, if the bundle has all of its parts.

    Raises:
        BundleError: a stage or the constants are missing.
    """
    missing = [name for name in stages if name not in bundle.manifest.stages]
    if missing or constants is None:
        raise BundleError(
            f"bundle '{bundle.root.name}': the {decoder} lacks "
            f"{', '.join(missing) or 'its preprocessing constants'}. Compile the checkpoint again."
        )
    return constants
