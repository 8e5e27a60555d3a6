"""The manifest: the contract between compiler and runtime, as frozen dataclasses.

``Manifest.from_dict`` checks every field by name and type and refuses fields it does not know;
``Manifest.to_dict`` gives the same JSON back. Paths are relative, with ``/``, and stay inside the
bundle. Whether the files exist and are unchanged is the business of ``runtime.bundle``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from visionllm_edge.runtime.decoder_specs import (
    DetectorSpec,
    DiffusionSpec,
    PoseSpec,
    SchedulerSpec,
)
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.ports import Port, StagePorts
from visionllm_edge.runtime.typed_json import (
    Count,
    FieldError,
    json_from_object,
    object_from_json,
)

__all__ = [
    "FP32",
    "LLAMA",
    "MANIFEST_NAME",
    "SCHEMA",
    "VISIONLLM_V2",
    "CheckpointInfo",
    "DetectorSpec",
    "DiffusionSpec",
    "FileEntry",
    "InputLimits",
    "LlmSpec",
    "Manifest",
    "ModelSpec",
    "Normalization",
    "PoseSpec",
    "PreprocessSpec",
    "PromptSpec",
    "SchedulerSpec",
    "StageSpec",
    "SuperlinkSpec",
    "TargetSpec",
    "TokenizerSpec",
    "Variant",
    "VisionSpec",
    "check_relative",
]

SCHEMA = 4
MANIFEST_NAME = "manifest.json"

VISIONLLM_V2 = "visionllm_v2"
LLAMA = "llama"
FP32 = "fp32"
_FAMILIES = (VISIONLLM_V2, LLAMA)
_LLM_PRECISIONS = (FP32, "int8", "int4", "int4-awq")
_CACHE_TYPES = ("float32", "float16", "int8")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CheckpointInfo:
    """Which checkpoint was compiled."""

    fingerprint: str


@dataclass(frozen=True)
class TargetSpec:
    """What the bundle was compiled for."""

    name: str
    backend: str
    precision: str


@dataclass(frozen=True)
class Variant:
    """One graph of a stage.

    Attributes:
        bucket: the (height, width) it is made for, if any.
        model: what the backend loads.
        canonical: the graph before lowering, from which a kit for another target is made; None in
            a bundle of engines.
    """

    bucket: tuple[Count, Count] | None
    model: str
    canonical: str | None = None


@dataclass(frozen=True)
class InputLimits:
    """Smallest and largest shape of an input that a stage was built for."""

    min: tuple[Count, ...]
    max: tuple[Count, ...]


@dataclass(frozen=True)
class StageSpec:
    """One stage: ends, graphs, and what the compiler says about it.

    Attributes:
        inputs: ports.
        outputs: ports.
        variants: graphs or engines.
        lowering: form of each semantic node, by file.
        parity: rule, limits and worst error.
        limits: of the inputs with open axes, where engines take less than the ports allow: no
            profile of any variant goes beyond.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    variants: tuple[Variant, ...]
    lowering: Mapping[str, object] = field(default_factory=dict)
    parity: Mapping[str, object] = field(default_factory=dict)
    limits: Mapping[str, InputLimits] | None = None

    def __post_init__(self) -> None:
        """Refuse variants that leave open which graph to take, and limits of no input."""
        ranks = {port.name: len(port.shape) for port in self.inputs}
        for name, limits in (self.limits or {}).items():
            if not ranks.get(name) == len(limits.min) == len(limits.max):
                raise ValueError(
                    f"limits expected shapes of the inputs {ranks} (name: rank), got "
                    f"{name!r}: {list(limits.min)} to {list(limits.max)}"
                )
        buckets = [variant.bucket for variant in self.variants]
        plain = buckets == [None]
        if not plain and (not buckets or None in buckets or len(set(buckets)) < len(buckets)):
            raise ValueError(
                "variants expected one graph without a bucket, or one graph for each bucket, "
                f"got buckets {buckets}"
            )

    def ports(self, name: str) -> StagePorts:
        """The ends, with the stage's name for messages."""
        return StagePorts(name, self.inputs, self.outputs)


@dataclass(frozen=True)
class LlmSpec:
    """Sizes of the language model, and how its numbers are held.

    Attributes:
        hidden_size: width of a row.
        num_layers: decoder layers.
        num_kv_heads: heads of keys and values.
        head_dim: width of a head.
        vocab_size: rows of the embedding table and of the logits.
        max_positions: rows that a context may have.
        precision: of the decoder's matrices: fp32, int8, int4 or int4-awq.
        block_size: weights of one row that share a scale; 0 where they have none.
        cache: element type of keys and values, float32, float16 or int8.
    """

    hidden_size: Count
    num_layers: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    max_positions: Count
    precision: str = FP32
    block_size: int = 0
    cache: str = "float32"

    def __post_init__(self) -> None:
        """Refuse a precision or a cache that no compiler writes."""
        if self.precision not in _LLM_PRECISIONS:
            raise ValueError(
                f"precision expected {', '.join(_LLM_PRECISIONS)}, got {self.precision!r}"
            )
        if (self.block_size == 0) != (self.precision == FP32):
            raise ValueError(
                "block_size expected 0 for fp32 and a positive number for every other precision, "
                f"got {self.block_size} for {self.precision}"
            )
        if self.cache not in _CACHE_TYPES:
            raise ValueError(f"cache expected {', '.join(_CACHE_TYPES)}, got {self.cache!r}")


@dataclass(frozen=True)
class VisionSpec:
    """Sizes of the vision encoder."""

    image_size: Count
    tokens_per_tile: Count
    max_tiles: Count


@dataclass(frozen=True)
class SuperlinkSpec:
    """The rows that follow a routing token, and the decoder that they feed."""

    tokens: tuple[str, ...]
    rows: Count
    table: str | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """What the runtime must know about the model; a language model alone has no `vision`.

    Attributes:
        llm: the language model.
        superlink: what follows each routing token, and which decoder reads it.
        embed_table: file of the embedding table.
        vision: the vision encoder.
        regions: whether questions may point at regions (stage `region_encoder`).
        detector: the object decoder (stages `det_*`).
        pose: the keypoint decoder (stages `pose_*`).
        generation: pictures from words (stages `gen_*`).
        editing: pictures from a picture and words (stages `edit_*`).
    """

    llm: LlmSpec
    superlink: Mapping[str, SuperlinkSpec]
    embed_table: str
    vision: VisionSpec | None = None
    regions: bool = False
    detector: DetectorSpec | None = None
    pose: PoseSpec | None = None
    generation: DiffusionSpec | None = None
    editing: DiffusionSpec | None = None


@dataclass(frozen=True)
class Normalization:
    """Per-channel constants in RGB order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Refuse a division by zero."""
        if 0.0 in self.std:
            raise ValueError("std expected no zeros")


@dataclass(frozen=True)
class PreprocessSpec:
    """Constants of the image inputs: ``clip`` for values 0..1, the decoders' for 0..255."""

    clip: Normalization
    detector: Normalization | None = None
    pose: Normalization | None = None


@dataclass(frozen=True)
class TokenizerSpec:
    """Tokenizer file and the ids that the runtime writes itself; `bos` None: nothing goes first."""

    file: str
    space_after_control: bool
    bos: int | None
    eos: int
    controls: Mapping[str, int]


@dataclass(frozen=True)
class PromptSpec:
    """Conversation template, and what the model is told first if not the template's own text."""

    template: str
    system: str | None = None


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Refuse what no digest looks like."""
        if not _DIGEST.fullmatch(self.sha256):
            raise ValueError("sha256 expected 64 hexadecimal digits")


@dataclass(frozen=True)
class Manifest:
    """The whole manifest. ``files`` lists every file of the bundle but the manifest itself.

    The family says what the bundle can do: ``visionllm_v2`` answers about pictures and has
    ``model.vision`` and ``preprocess``; ``llama`` is a language model alone and has neither.
    """

    family: str
    name: str
    created_by: Mapping[str, str]
    checkpoint: CheckpointInfo
    target: TargetSpec
    stages: Mapping[str, StageSpec]
    model: ModelSpec
    tokenizer: TokenizerSpec
    prompt: PromptSpec
    preprocess: PreprocessSpec | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The JSON of ``manifest.json``."""
        return {"schema": SCHEMA, **cast(dict[str, object], json_from_object(self))}

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Read and check.

        Raises:
            BundleError: another schema, or a field that is missing, unknown or of a wrong type.
        """
        if not isinstance(data, dict):
            raise BundleError(f"manifest: expected an object, got {type(data).__name__}")
        content = dict(data)
        schema = content.pop("schema", None)
        if schema != SCHEMA or isinstance(schema, bool):
            raise BundleError(
                f"manifest: expected schema {SCHEMA}, which this version reads, got {schema!r}. "
                "Compile the bundle again with this version of visionllm-edge."
            )
        try:
            manifest = object_from_json(cls, content)
        except FieldError as e:
            raise BundleError(f"manifest: {e}") from e
        for path in manifest.files:
            check_relative(path, "manifest: files")
        manifest.check_references()
        return manifest

    def vision(self) -> VisionSpec:
        """Sizes of the vision encoder.

        Raises:
            BundleError: a language model alone.
        """
        if self.model.vision is None:
            raise self._no_pictures("vision encoder")
        return self.model.vision

    def preprocessing(self) -> PreprocessSpec:
        """Constants of the image inputs.

        Raises:
            BundleError: a language model alone.
        """
        if self.preprocess is None:
            raise self._no_pictures("image input")
        return self.preprocess

    def _no_pictures(self, missing: str) -> BundleError:
        return BundleError(
            f"bundle of '{self.name}' (family '{self.family}'): expected a {missing}, got a "
            "language model alone. Give it text only, or compile a VisionLLM v2 checkpoint."
        )

    def referenced_files(self) -> dict[str, str]:
        """Every path that a field names, with the field."""
        out = {self.model.embed_table: "model.embed_table", self.tokenizer.file: "tokenizer.file"}
        for name, link in self.model.superlink.items():
            if link.table is not None:
                out[link.table] = f"model.superlink.{name}.table"
        for name in ("generation", "editing"):
            spec: DiffusionSpec | None = getattr(self.model, name)
            if spec is not None:
                out[spec.empty_prompt] = f"model.{name}.empty_prompt"
        for name, stage in self.stages.items():
            where = f"stages.{name}.variants"
            for variant in stage.variants:
                out[variant.model] = where
                if variant.canonical is not None:
                    out[variant.canonical] = where
        return out

    def check_references(self) -> None:
        """Refuse fields that do not fit together.

        Raises:
            BundleError: a family that is not known or lacks its part of the fields, a field that
                names a file that ``files`` does not list, or a stage of the object or keypoint
                decoder that has graphs for other buckets than the decoder.
        """
        self._check_family()
        for path, where in self.referenced_files().items():
            check_relative(path, f"manifest: {where}")
            if path not in self.files:
                raise BundleError(f"manifest: {where} names {path!r}, which 'files' does not list")
        for prefix, part in (("det_", "detector"), ("pose_", "pose")):
            spec: DetectorSpec | PoseSpec | None = getattr(self.model, part)
            sizes = set(spec.buckets) if spec else set()
            for name, stage in self.stages.items():
                have = {variant.bucket for variant in stage.variants}
                if name.startswith(prefix) and have != sizes:
                    raise BundleError(
                        f"manifest: stage {name!r} has graphs for buckets "
                        f"{sorted(map(str, have))}, model.{part}.buckets says "
                        f"{sorted(map(str, sizes))}"
                    )

    def _check_family(self) -> None:
        if self.family not in _FAMILIES:
            raise BundleError(
                f"manifest: 'family' expected {' or '.join(_FAMILIES)}, got {self.family!r}. "
                "Run it with the version of visionllm-edge that compiled it."
            )
        expected = self.family == VISIONLLM_V2
        for where, part in (("model.vision", self.model.vision), ("preprocess", self.preprocess)):
            if (part is not None) != expected:
                raise BundleError(
                    f"manifest: {where!r} expected {'a value' if expected else 'none'} in a bundle "
                    f"of family {self.family!r}, got {'none' if expected else 'one'}"
                )


def check_relative(path: str, where: str) -> None:
    """Refuse a path that could lead out of a bundle or means different things on two systems.

    Raises:
        BundleError: absolute, with ``..``, ``.``, an empty part, a backslash, a drive or a control
            character, or the manifest's own name.
    """
    parts = path.split("/")
    bad = any(part in ("", ".", "..") for part in parts) or any(
        c in '\\:*?"<>|' or ord(c) < 32 for c in path
    )
    if bad or path == MANIFEST_NAME:
        raise BundleError(
            f"{where}: path {path!r} is not allowed; expected a relative path with '/', "
            "inside the bundle, without '..'"
        )
