"""The plan of a build kit (`kit.json`): what to build, how, and what the sealed bundle will say.

`KitPlan.from_dict` checks every field by name and type, as the manifest does. The plan knows no
TensorRT: it names graphs, shape ranges, precisions and the form of every semantic node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import FileEntry, check_relative
from visionllm_edge.runtime.typed_json import (
    Count,
    FieldError,
    json_from_object,
    object_from_json,
)

__all__ = [
    "KIT_NAME",
    "KIT_SCHEMA",
    "Golden",
    "KitPlan",
    "KitTarget",
    "NodeForm",
    "Profile",
    "ShapeRange",
    "StagePlan",
]

KIT_SCHEMA = 1
KIT_NAME = "kit.json"


@dataclass(frozen=True)
class KitTarget:
    """The device family that the graphs were lowered for.

    Attributes:
        name: of the target.
        backend: `tensorrt` or `tensorrt_rtx`.
        precision: that stages have unless their plan says otherwise.
        sm: compute capabilities times ten (87 is 8.7).
        tensorrt: release that the lowering assumes; a device with another minor release is
            warned about, another major release is refused.
        device: in words.
    """

    name: str
    backend: str
    precision: str
    sm: tuple[Count, ...] = ()
    tensorrt: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class NodeForm:
    """The form that lowering gave a semantic node; the parser's log must agree with it."""

    node: str
    op: str
    form: str
    reason: str


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of one input in one optimisation profile."""

    min: tuple[Count, ...]
    opt: tuple[Count, ...]
    max: tuple[Count, ...]

    def __post_init__(self) -> None:
        """Refuse a range that is none."""
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError(f"ranks differ: {self.min}, {self.opt}, {self.max}")
        for low, best, high in zip(self.min, self.opt, self.max, strict=True):
            if not low <= best <= high:
                raise ValueError(
                    f"expected min <= opt <= max, got {self.min}, {self.opt}, {self.max}"
                )


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: what it is for, and a range for every dynamic input."""

    use: str
    shapes: Mapping[str, ShapeRange]


@dataclass(frozen=True)
class Golden:
    """Inputs and true outputs of one run, and the largest error allowed per output."""

    file: str
    limits: Mapping[str, float]


@dataclass(frozen=True)
class StagePlan:
    """One engine to build.

    Attributes:
        stage: name of the stage.
        graph: lowered graph, relative to the kit.
        engine: where the engine stands in the sealed bundle.
        precision: of the graph; strongly typed, so this is information and part of the key.
        bucket: (height, width) of the variant, None where the stage has one graph.
        profiles: optimisation profiles in the order of the engine; none where all is fixed.
        forms: of the semantic nodes.
        golden: what a device checks the engine with; one variant of a stage carries it.
        flags: names of builder flags.
    """

    stage: str
    graph: str
    engine: str
    precision: str
    bucket: tuple[Count, Count] | None = None
    profiles: tuple[Profile, ...] = ()
    forms: tuple[NodeForm, ...] = ()
    golden: Golden | None = None
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`det_encoder.128x192`: stage and bucket."""
        if self.bucket is None:
            return self.stage
        return f"{self.stage}.{self.bucket[0]}x{self.bucket[1]}"

    @property
    def plugin_ops(self) -> tuple[str, ...]:
        """Operators that must become plugins, each once."""
        return tuple(dict.fromkeys(form.op for form in self.forms if form.form == "plugin"))


@dataclass(frozen=True)
class KitPlan:
    """The whole plan.

    Attributes:
        target: what for.
        created_by: versions of the packages that made the kit.
        stages: engines, in the order in which they are built.
        manifest: JSON of the sealed bundle's manifest; the seal fills in what the build finds.
        payload: files that go into the sealed bundle as they are: path in the bundle -> in the kit.
        files: every file of the kit but `kit.json` itself and the build folder.
    """

    target: KitTarget
    created_by: Mapping[str, str]
    stages: tuple[StagePlan, ...]
    manifest: Mapping[str, object]
    payload: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The JSON of `kit.json`."""
        return {"schema": KIT_SCHEMA, **cast(dict[str, object], json_from_object(self))}

    @classmethod
    def from_dict(cls, data: object) -> KitPlan:
        """Read and check.

        Raises:
            BundleError: another schema, a field that is missing, unknown or of a wrong type, or a
                path that is unsafe or not listed.
        """
        if not isinstance(data, dict):
            raise BundleError(f"kit: expected an object, got {type(data).__name__}")
        content = dict(data)
        schema = content.pop("schema", None)
        if schema != KIT_SCHEMA or isinstance(schema, bool):
            raise BundleError(
                f"kit: expected schema {KIT_SCHEMA}, which this version reads, got {schema!r}. "
                "Make the kit again with the version of visionllm-edge that builds it."
            )
        try:
            plan = object_from_json(cls, content)
        except FieldError as e:
            raise BundleError(f"kit: {e}") from e
        plan._check_references()
        return plan

    def stage(self, name: str) -> StagePlan:
        """The plan of one engine by its name.

        Raises:
            BundleError: there is none of that name.
        """
        for plan in self.stages:
            if plan.name == name:
                return plan
        raise BundleError(
            f"kit: no stage {name!r}; it has {', '.join(p.name for p in self.stages)}"
        )

    def selected(self, names: tuple[str, ...]) -> tuple[StagePlan, ...]:
        """The engines of these stages (`det_masks` names all its buckets); all for no names.

        Raises:
            BundleError: a name that fits no engine.
        """
        for name in names:
            if not any(name in (plan.name, plan.stage) for plan in self.stages):
                raise BundleError(
                    f"kit: no stage {name!r}; it has {', '.join(p.name for p in self.stages)}"
                )
        if not names:
            return self.stages
        return tuple(plan for plan in self.stages if {plan.name, plan.stage} & set(names))

    def _check_references(self) -> None:
        names = [plan.name for plan in self.stages]
        if not names or len(set(names)) < len(names):
            raise BundleError(f"kit: expected stages with different names, got {names}")
        for path in self.files:
            check_relative(path, "kit: files")
        wanted = {plan.graph: f"stages.{plan.name}.graph" for plan in self.stages}
        for plan in self.stages:
            check_relative(plan.engine, f"kit: stages.{plan.name}.engine")
            if plan.golden is not None:
                wanted[plan.golden.file] = f"stages.{plan.name}.golden.file"
        for there, here in self.payload.items():
            check_relative(there, "kit: payload")
            wanted[here] = f"payload.{there}"
        for path, where in wanted.items():
            if path not in self.files:
                raise BundleError(f"kit: {where} names {path!r}, which 'files' does not list")
