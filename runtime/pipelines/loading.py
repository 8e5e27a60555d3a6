"""From an opened bundle to a pipeline: stages are loaded when first needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from visionllm_edge.runtime.backends import StageOptions, StageRunner, load_backend
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.decoder_specs import Making
from visionllm_edge.runtime.diffusion.from_bundle import image_maker
from visionllm_edge.runtime.errors import BundleError, InputError
from visionllm_edge.runtime.llm.embeddings import EmbeddingTable, SuperLink
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.manifest import LLAMA, VISIONLLM_V2
from visionllm_edge.runtime.memory import available_bytes, check_addition, check_memory
from visionllm_edge.runtime.pipelines.detector import detector_from_bundle
from visionllm_edge.runtime.pipelines.pose import pose_from_bundle
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.pipelines.text import TextPipeline
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2, VisionSettings
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["BundleStages", "LoadOptions", "Observe", "load_pipeline", "load_text_pipeline"]

_HOST_BACKEND = "onnxruntime"
Observe = Callable[[Stages], Stages]
_Admit = Callable[[Making], None]
# Two conversations that take turns, or questions about two pictures, each keep their cache.
_CACHES = 2


@dataclass(frozen=True)
class LoadOptions:
    """How to load a bundle.

    Attributes:
        threads: for each operator; None leaves it to the backend.
        context: positions of the decoder's cache; None for all that the model has.
        buckets: size buckets of the detector that are kept in memory, each with its own weights.
            Pictures come in few sizes: landscape and portrait of one camera are two.
        overlap: run the backbone of a request that needs one beside the language model; the answers
            are the same, bit by bit. None does so where a device of its own does the work, and not
            on a processor, where both want the same cores: with two threads on two cores a Swin-T
            backbone at 800x1088 and a decoder of TinyLlama's shape in int4 took 1.04 times as long
            at once as in turns for a prompt, 1.15 times for words. Where ``threads`` leaves cores
            free it pays: with one thread on two cores 0.80 and 0.70 times as long.
    """

    threads: int | None = None
    context: int | None = None
    buckets: int = 2
    overlap: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded."""
        for name, value in (
            ("threads", self.threads),
            ("context", self.context),
            ("buckets", self.buckets),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}. Change the option.")

    def overlaps(self, backend: str) -> bool:
        """Whether stages run beside the language model on that backend."""
        return backend != _HOST_BACKEND if self.overlap is None else self.overlap


class BundleStages:
    """The stages of a bundle, loaded on demand; `get` is for any thread.

    Args:
        bundle: an opened bundle.
        options: how to load a stage.
        buckets: size buckets that are kept.
    """

    def __init__(self, bundle: Bundle, options: StageOptions, *, buckets: int = 2) -> None:
        """Load the backend, and no stage yet."""
        self._bundle = bundle
        self._kept = buckets
        self._backend = load_backend(bundle.manifest.target.backend)
        self._options = replace(options, bundle=bundle)
        self._plain: dict[str, StageRunner] = {}
        self._bucketed: OrderedDict[tuple[int, int], dict[str, StageRunner]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the stages without size buckets that are in memory."""
        return frozenset(self._plain)

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> StageRunner:
        """A stage, for a size bucket where it has several graphs.

        Raises:
            BundleError: no such stage, or none for that bucket.
            BackendError: it cannot be loaded.
        """
        # A stage that is there is not kept waiting by one that another thread loads.
        runner = self._plain.get(name)
        if runner is not None:
            return runner
        with self._lock:
            return self._get(name, bucket)

    def _get(self, name: str, bucket: tuple[int, int] | None) -> StageRunner:
        spec = self._bundle.manifest.stages.get(name)
        if spec is not None and all(variant.bucket is None for variant in spec.variants):
            bucket = None
        loaded = self._plain
        if bucket is not None:
            loaded = self._bucketed.setdefault(bucket, {})
            self._bucketed.move_to_end(bucket)
            while len(self._bucketed) > self._kept:
                self._bucketed.popitem(last=False)
        if name not in loaded:
            path = self._bundle.stage_model(name, bucket)
            ports = self._bundle.manifest.stages[name].ports(name)
            loaded[name] = self._backend.load_stage(path, ports, self._options)
        return loaded[name]


def load_pipeline(
    bundle: Bundle,
    options: LoadOptions | None = None,
    *,
    stages: Stages | None = None,
    observe: Observe | None = None,
) -> VisionLLMv2:
    """Put the parts of a bundle together. The decoder is loaded here, the others when needed.

    Args:
        bundle: an opened bundle.
        options: how to load it.
        stages: take these in place of the bundle's own (the parity gate runs the same pipeline on
            the torch model). Memory is not planned then, and nothing overlaps unless asked to.
        observe: gets the stages and gives back what the pipeline shall use in their place; a
            measurement puts its clocks there.

    Raises:
        BundleError: of another model family, or its parts do not fit together.
        BackendError: the backend or the decoder cannot be loaded.
        MemoryLimitError: it needs more memory than the machine has free.
        InputError: a larger context than the model has.
    """
    manifest = bundle.manifest
    _require_family(bundle, VISIONLLM_V2, "Ask it by LanguageModel, or `run --task text`.")
    tokenizer = _tokenizer(bundle)
    links = SuperLink.from_bundle(bundle)
    unknown = {name for link in links for name in link.tokens} - set(tokenizer.control_ids)
    if unknown:
        raise BundleError(
            f"bundle '{bundle.root.name}': routing tokens {sorted(unknown)} have tables but no id "
            "in the manifest's tokenizer section. Compile the checkpoint again."
        )
    vision, clip = manifest.vision(), manifest.preprocessing().clip
    options = options or LoadOptions()
    overlap = options.overlaps(manifest.target.backend if stages is None else _HOST_BACKEND)
    stages, session, admit = _session(bundle, options, stages, observe)
    return VisionLLMv2(
        stages=stages,
        tokenizer=tokenizer,
        session=session,
        links=links,
        vision=VisionSettings(
            image_size=vision.image_size,
            tokens_per_tile=vision.tokens_per_tile,
            max_tiles=vision.max_tiles,
            mean=clip.mean,
            std=clip.std,
        ),
        detector=detector_from_bundle(bundle, stages),
        template=manifest.prompt.template,
        pose=pose_from_bundle(bundle, stages),
        generator=image_maker(bundle, stages, "generate", partial(admit, "generate")),
        editor=image_maker(bundle, stages, "edit", partial(admit, "edit")),
        regions=manifest.model.regions,
        overlap=overlap,
    )


def load_text_pipeline(
    bundle: Bundle,
    options: LoadOptions | None = None,
    *,
    stages: Stages | None = None,
    observe: Observe | None = None,
) -> TextPipeline:
    """Put the parts of a language model together. Arguments and errors as :func:`load_pipeline`."""
    _require_family(bundle, LLAMA, "Ask it by VisionLLM, or `run` with a picture.")
    _, session, _ = _session(bundle, options or LoadOptions(), stages, observe)
    return TextPipeline(
        tokenizer=_tokenizer(bundle),
        session=session,
        template=bundle.manifest.prompt.template,
        system=bundle.manifest.prompt.system,
    )


def _require_family(bundle: Bundle, family: str, hint: str) -> None:
    found = bundle.manifest.family
    if found != family:
        raise BundleError(
            f"bundle '{bundle.root.name}': expected family '{family}', got '{found}'. {hint}"
        )


def _tokenizer(bundle: Bundle) -> Tokenizer:
    spec = bundle.manifest.tokenizer
    return Tokenizer.from_file(
        bundle.file(spec.file),
        controls=spec.controls,
        bos=spec.bos,
        eos=spec.eos,
        space_after_control=spec.space_after_control,
    )


def _session(
    bundle: Bundle, options: LoadOptions, stages: Stages | None, observe: Observe | None
) -> tuple[Stages, DecoderSession, _Admit]:
    """The stages, the decoder with as many caches as there is memory for, and a last check.

    The check is for the chain of a picture, before it is loaded.
    """
    most = bundle.manifest.model.llm.max_positions
    context = options.context or most
    if context > most:
        raise InputError(
            f"context: expected at most {most} positions, which the model was made for, "
            f"got {context}. Change the option."
        )
    caches, admit = 1, _admit_all
    if stages is None:
        own = BundleStages(bundle, StageOptions(threads=options.threads), buckets=options.buckets)
        if bundle.manifest.target.backend == _HOST_BACKEND:
            free = available_bytes()
            plan = check_memory(bundle, context=context, buckets=options.buckets, available=free)
            # A second cache is a comfort, so it leaves room for the pictures that may be asked for.
            if free is not None and plan.total_with_pictures + plan.cache * (_CACHES - 1) <= free:
                caches = _CACHES

            def admit(making: Making) -> None:
                check_addition(
                    bundle,
                    making,
                    loaded=own.loaded,
                    context=context,
                    buckets=options.buckets,
                    available=available_bytes(),
                )

        stages = own
    if observe is not None:
        stages = observe(stages)
    table = EmbeddingTable.from_bundle(bundle)
    decoder = stages.get("llm_decoder")
    return stages, DecoderSession(decoder, table, capacity=context, caches=caches), admit


def _admit_all(making: Making) -> None:
    """Memory of another device, or of stages that are not the bundle's, is not planned."""
