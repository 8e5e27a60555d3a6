"""What the object and the keypoint decoder share: how a picture becomes a backbone's maps.

Nothing here depends on what is asked, so a request may have it done beside the language model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import DetectorSpec, Normalization, PoseSpec
from visionllm_edge.runtime.pipelines.picture import DetectorFeatures, Picture
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.preprocess import DetectorInput

__all__ = ["Backbone", "constants_of"]


class Backbone:
    """Prepares a picture and runs a backbone on it, once per picture.

    Args:
        stages: of the bundle.
        stage: name of the backbone.
        spec: sizes of the decoder.
        constants: of its pixels.
        prepare: ``detector_input`` or ``pose_input``.
        levels: the maps that are kept, in this order.
    """

    def __init__(
        self,
        stages: Stages,
        stage: str,
        spec: DetectorSpec | PoseSpec,
        constants: Normalization,
        prepare: Callable[..., DetectorInput],
        *,
        levels: Sequence[int],
    ) -> None:
        """Load nothing yet: the picture decides which bucket is needed."""
        self._stages = stages
        self._stage = stage
        self._spec = spec
        self._constants = constants
        self._prepare = prepare
        self._levels = tuple(levels)
        # A stage is for one thread at a time.
        self._lock = threading.Lock()

    def knows(self, picture: Picture) -> bool:
        """Whether the picture has been looked at."""
        return self._stage in picture.features

    def look_at(self, picture: Picture) -> DetectorFeatures:
        """The features of a picture, made if it has none yet. For any thread.

        Raises:
            BackendError: the backbone failed; the picture is as it was.
        """
        with self._lock:
            if self._stage not in picture.features:
                picture.features[self._stage] = self._features(picture)
            return picture.features[self._stage]

    def _features(self, picture: Picture) -> DetectorFeatures:
        spec, constants = self._spec, self._constants
        prepared = self._prepare(
            picture.rgb,
            shortest=spec.shortest_edge,
            longest=spec.longest_edge,
            divisor=spec.divisor,
            buckets=spec.buckets,
            mean=constants.mean,
            std=constants.std,
        )
        runner = self._stages.get(self._stage, prepared.bucket)
        maps = runner.run_kept({"pixels": prepared.pixels})
        return DetectorFeatures(prepared, tuple(maps[f"map{level}"] for level in self._levels))


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
