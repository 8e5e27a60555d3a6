"""From an opened bundle to a pipeline: stages are loaded when first needed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from visionllm_edge.runtime.backends import StageOptions, StageRunner, load_backend
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.llm.embeddings import EmbeddingTable, SuperLink
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.pipelines.detector import Detector, DetectorSettings
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2, VisionSettings
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["FAMILY", "BundleStages", "load_pipeline"]

FAMILY = "visionllm_v2"
_DETECTOR_STAGES = ("det_backbone", "det_encoder", "det_decoder", "det_masks")
# Each size bucket of the detector holds its own weights in memory. Pictures come in few sizes:
# landscape and portrait of one camera are two.
_BUCKETS_KEPT = 2


class BundleStages:
    """The stages of a bundle, loaded on demand.

    Args:
        bundle: an opened bundle.
        options: how to load a stage.
    """

    def __init__(self, bundle: Bundle, options: StageOptions) -> None:
        """Load the backend, and no stage yet."""
        self._bundle = bundle
        self._backend = load_backend(bundle.manifest.target.backend)
        self._options = replace(options, bundle=bundle)
        self._plain: dict[str, StageRunner] = {}
        self._bucketed: OrderedDict[tuple[int, int], dict[str, StageRunner]] = OrderedDict()

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> StageRunner:
        """A stage, for a size bucket where it has several graphs.

        Raises:
            BundleError: no such stage, or none for that bucket.
            BackendError: it cannot be loaded.
        """
        spec = self._bundle.manifest.stages.get(name)
        if spec is not None and all(variant.bucket is None for variant in spec.variants):
            bucket = None
        loaded = self._plain
        if bucket is not None:
            loaded = self._bucketed.setdefault(bucket, {})
            self._bucketed.move_to_end(bucket)
            while len(self._bucketed) > _BUCKETS_KEPT:
                self._bucketed.popitem(last=False)
        if name not in loaded:
            path = self._bundle.stage_model(name, bucket)
            ports = self._bundle.manifest.stages[name].ports(name)
            loaded[name] = self._backend.load_stage(path, ports, self._options)
        return loaded[name]


def load_pipeline(
    bundle: Bundle, *, threads: int | None = None, stages: Stages | None = None
) -> VisionLLMv2:
    """Put the parts of a bundle together. The decoder is loaded here, the others when needed.

    Args:
        bundle: an opened bundle.
        threads: for each operator; None leaves it to the backend.
        stages: take these in place of the bundle's own (the parity gate runs the same pipeline on
            the torch model).

    Raises:
        BundleError: of another model family, or its parts do not fit together.
        BackendError: the backend or the decoder cannot be loaded.
    """
    manifest = bundle.manifest
    if manifest.family != FAMILY:
        raise BundleError(
            f"bundle '{bundle.root.name}': expected family '{FAMILY}', got '{manifest.family}'. "
            "Use a version of visionllm-edge that knows this family."
        )
    if stages is None:
        stages = BundleStages(bundle, StageOptions(threads=threads))
    spec = manifest.tokenizer
    tokenizer = Tokenizer.from_file(
        bundle.file(spec.file),
        controls=spec.controls,
        bos=spec.bos,
        eos=spec.eos,
        space_after_control=spec.space_after_control,
    )
    links = SuperLink.from_bundle(bundle)
    unknown = {name for link in links for name in link.tokens} - set(tokenizer.control_ids)
    if unknown:
        raise BundleError(
            f"bundle '{bundle.root.name}': routing tokens {sorted(unknown)} have tables but no id "
            "in the manifest's tokenizer section. Compile the checkpoint again."
        )
    return VisionLLMv2(
        stages=stages,
        tokenizer=tokenizer,
        session=DecoderSession(
            stages.get("llm_decoder"),
            EmbeddingTable.from_bundle(bundle),
            capacity=manifest.model.llm.max_positions,
        ),
        links=links,
        vision=VisionSettings(
            image_size=manifest.model.vision.image_size,
            tokens_per_tile=manifest.model.vision.tokens_per_tile,
            max_tiles=manifest.model.vision.max_tiles,
            mean=manifest.preprocess.clip.mean,
            std=manifest.preprocess.clip.std,
        ),
        detector=_detector(bundle, stages),
        template=manifest.prompt.template,
    )


def _detector(bundle: Bundle, stages: Stages) -> Detector | None:
    spec = bundle.manifest.model.detector
    if spec is None:
        return None
    normalization = bundle.manifest.preprocess.detector
    missing = [name for name in _DETECTOR_STAGES if name not in bundle.manifest.stages]
    if missing or normalization is None:
        raise BundleError(
            f"bundle '{bundle.root.name}': the detector lacks "
            f"{', '.join(missing) or 'its preprocessing constants'}. Compile the checkpoint again."
        )
    return Detector(
        stages,
        DetectorSettings(
            buckets=spec.buckets,
            shortest_edge=spec.shortest_edge,
            longest_edge=spec.longest_edge,
            divisor=spec.divisor,
            max_text_len=min(spec.max_text_len, 256),
            mean=normalization.mean,
            std=normalization.std,
        ),
    )
