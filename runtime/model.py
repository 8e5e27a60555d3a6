"""The public face: a loaded bundle that answers.

    model = VisionLLM.load("bundle")
    result = model.detect("photo.jpg", ["red circle", "person"])
    result.draw("photo.jpg").save("found.png")

Every task takes ``stream``, a function that gets the typed events as they happen. A model is for
one thread at a time. The tasks stand in :mod:`visionllm_edge.runtime.tasks`.
"""

from __future__ import annotations

import os

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.pipelines.loading import LoadOptions, Observe, load_pipeline
from visionllm_edge.runtime.tasks.base import Mode, Stream
from visionllm_edge.runtime.tasks.detection import DetectionTasks
from visionllm_edge.runtime.tasks.grounding import GroundingTasks
from visionllm_edge.runtime.tasks.images import ImageTasks
from visionllm_edge.runtime.tasks.language import LanguageTasks
from visionllm_edge.runtime.tasks.pose import PoseTasks
from visionllm_edge.runtime.tasks.regions import RegionTasks

__all__ = ["Mode", "Stream", "VisionLLM"]


class VisionLLM(DetectionTasks, LanguageTasks, RegionTasks, GroundingTasks, PoseTasks, ImageTasks):
    """A model that is ready to answer. Made by :meth:`load`.

    Repeated questions about a picture reuse its features and the common beginning of the prompt.
    """

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        verify: bool = True,
        context: int | None = None,
        buckets: int = 2,
        overlap: bool | None = None,
    ) -> VisionLLM:
        """Load a bundle.

        Args:
            path: the bundle's folder.
            threads: for each operator; None leaves it to the backend.
            verify: hash every file first.
            context: positions that a conversation may have, the picture's among them; None for
                all that the model has. A smaller context takes less memory.
            buckets: how many picture sizes of the detector stay loaded.
            overlap: look at the picture for a decoder while the language model runs; None does so
                where it pays, see `LoadOptions`. Answers are the same either way.

        Raises:
            BundleError: not a bundle, or not as it was compiled.
            BackendError: its backend cannot load it.
            MemoryLimitError: it needs more memory than the machine has free.
        """
        options = LoadOptions(threads=threads, context=context, buckets=buckets, overlap=overlap)
        return cls.from_bundle(Bundle.open(path, verify=verify), options)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        options: LoadOptions | None = None,
        *,
        observe: Observe | None = None,
    ) -> VisionLLM:
        """As :meth:`load`, of a bundle that is open already; `observe` as in `load_pipeline`."""
        return cls(load_pipeline(bundle, options, observe=observe))
