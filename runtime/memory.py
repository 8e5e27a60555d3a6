"""Memory is planned before anything is loaded: weights, cache and workspace against what is free.

A model that does not fit would otherwise be found out by the system, minutes later and by killing
the process or by swapping. The plan counts

1. the weights of every stage that a question about a picture may need, a stage with size buckets
   once for each bucket that is kept;
2. the key/value cache for the whole context;
3. the decoder's working memory for the longest run, estimated from its width;
4. apart from these, what a first ``generate`` and a first ``edit`` add: the chain of a picture is
   the largest part of a bundle after the decoder, and many a model is never asked for one. It is
   held against what is free at that time, before anything of it is loaded.

The embedding table is mapped and costs the rows that are used; working memory of the vision stages
is not counted. Where a system does not say what is free, nothing is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.decoder_specs import Making
from visionllm_edge.runtime.errors import MemoryLimitError
from visionllm_edge.runtime.llm.session import PROMPT_ROWS
from visionllm_edge.runtime.manifest import LlmSpec, Manifest

__all__ = ["MemoryPlan", "available_bytes", "check_addition", "check_memory", "plan_memory"]

_log = logging.getLogger(__name__)
_ELEMENT_BYTES = {"float32": 4, "float16": 2, "int8": 1}
# Bits of a weight with its scale, by precision, as far as the runtime must know to advise.
_BITS = {"fp32": 32.0, "int8": 8.5, "int4": 4.5, "int4-awq": 4.5}
# What runs of 128, 256 and 512 positions took at TinyLlama's shape beside weights and cache: 46, 72
# and 124 MB, so 25 float32 rows of the model's width per position and 20 MB. ONNX Runtime itself
# takes the other 20.
_ROWS_ALIVE, _FIXED_BYTES = 25, 40_000_000
_SMALLEST_CONTEXT = 128
_CONTEXT_STEP = 64
_MAKING_PREFIXES: dict[str, Making] = {"gen": "generate", "edit": "edit"}


@dataclass(frozen=True)
class MemoryPlan:
    """What a loaded bundle will take, in bytes.

    Attributes:
        decoder: weights of the language model.
        other: weights of the other stages, without those of ``added``.
        bucketed: what one more size bucket adds; part of ``other``.
        cache: of one conversation.
        workspace: of the decoder.
        added: weights that the first ``generate`` and the first ``edit`` load.
    """

    decoder: int
    other: int
    bucketed: int
    cache: int
    workspace: int
    added: Mapping[Making, int]

    @property
    def total(self) -> int:
        """All that is there without a picture being made."""
        return self.decoder + self.other + self.cache + self.workspace

    @property
    def total_with_pictures(self) -> int:
        """All, once each way to make a picture was asked."""
        return self.total + sum(self.added.values())

    def __str__(self) -> str:
        """One line with its parts."""
        parts = (
            f"{_mb(self.total)} (weights {_mb(self.decoder + self.other)}, cache "
            f"{_mb(self.cache)}, workspace {_mb(self.workspace)})"
        )
        return "; ".join((parts, *(f"a first {k} adds {_mb(v)}" for k, v in self.added.items())))


def plan_memory(bundle: Bundle, *, context: int, buckets: int) -> MemoryPlan:
    """The plan of a bundle.

    Args:
        bundle: an opened bundle.
        context: positions of the cache.
        buckets: size buckets of the detector that are kept at a time.
    """
    manifest = bundle.manifest
    llm = manifest.model.llm
    decoder = other = bucketed = 0
    added: dict[Making, int] = {}
    for name, stage in manifest.stages.items():
        size = _weight_bytes(manifest, name)
        count = sum(variant.bucket is not None for variant in stage.variants)
        if name == "llm_decoder":
            decoder = size
        elif (making := _making(name)) is not None:
            added[making] = added.get(making, 0) + size
        elif count:
            other += size * min(count, buckets)
            bucketed += size * (min(count, buckets) > 1)
        else:
            other += size
    row = 2 * llm.num_layers * llm.num_kv_heads * llm.head_dim * _ELEMENT_BYTES[llm.cache]
    return MemoryPlan(
        decoder=decoder,
        other=other,
        bucketed=bucketed,
        cache=row * context,
        workspace=_workspace(llm, context),
        added=added,
    )


def check_memory(
    bundle: Bundle, *, context: int, buckets: int, available: int | None
) -> MemoryPlan:
    """Plan, and refuse a bundle that does not fit without a picture being made.

    Args:
        bundle: an opened bundle.
        context: positions of the cache.
        buckets: size buckets of the detector that are kept at a time.
        available: free bytes; None if unknown.

    Raises:
        MemoryLimitError: with the numbers and the cheapest ways out.
    """
    plan = plan_memory(bundle, context=context, buckets=buckets)
    _log.debug("memory: %s of %s", plan, "unknown" if available is None else _mb(available))
    if available is None or plan.total <= available:
        return plan
    ways = _ways_out(bundle.manifest.model.llm, plan, context, plan.total - available)
    raise MemoryLimitError(
        f"bundle '{bundle.root.name}': needs {plan}, expected at most {_mb(available)}, which is "
        f"what this machine has free. Ways out: {'; '.join(ways[:3])}."
    )


def check_addition(
    bundle: Bundle,
    making: Making,
    *,
    loaded: Collection[str],
    context: int,
    buckets: int,
    available: int | None,
) -> None:
    """Refuse to load the chain of a picture that does not fit beside what is loaded.

    Args:
        bundle: an opened bundle.
        making: which chain.
        loaded: names of stages that are in memory.
        context: positions of the cache.
        buckets: size buckets of the detector that are kept at a time.
        available: free bytes; None if unknown.

    Raises:
        MemoryLimitError: with the numbers and the cheapest ways out.
    """
    manifest = bundle.manifest
    names = [name for name in manifest.stages if _making(name) == making and name not in loaded]
    added = sum(_weight_bytes(manifest, name) for name in names)
    if available is None or added <= available:
        return
    plan = plan_memory(bundle, context=context, buckets=buckets)
    ways = _ways_out(manifest.model.llm, plan, context, added - available)
    raise MemoryLimitError(
        f"bundle '{bundle.root.name}': {making} loads {', '.join(names)}, {_mb(added)} of weights, "
        f"expected at most {_mb(available)}, which is what this machine has free beside the model. "
        f"Ways out: {'; '.join(ways[:3])}."
    )


def available_bytes(root: Path = Path("/")) -> int | None:
    """What a process here may still take; None where the system does not say.

    The smaller of what the machine has free and what the limits of the containers around this
    process leave.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    try:
        lines = (root / "proc" / "meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
    return min([free * 1024, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """What each control group around this process leaves, in either version of the interface."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    out = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / path.lstrip("/")
        # Inside a container the path may be the host's, which is not there: then only its root.
        for place in (folder, *folder.parents):
            limit, used = (_number(place / name) for name in names)
            if limit is not None and used is not None:
                out.append(max(0, limit - used + _reclaimable(place)))
            if place == base:
                break
    return out


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no limit
        return None


def _reclaimable(group: Path) -> int:
    """File pages that count as used and that the system gives back when it must."""
    try:
        pairs = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(pairs.get("total_inactive_file", pairs.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def _making(stage: str) -> Making | None:
    """Which chain of a picture a stage belongs to."""
    return _MAKING_PREFIXES.get(stage.split("_")[0])


def _weight_bytes(manifest: Manifest, stage: str) -> int:
    """A stage's weights file, or its graph files where the weights are inside."""
    entry = manifest.files.get(f"stages/{stage}.weights")
    if entry is not None:
        return entry.size
    return max(manifest.files[variant.model].size for variant in manifest.stages[stage].variants)


def _workspace(llm: LlmSpec, context: int) -> int:
    rows = min(context, PROMPT_ROWS)
    return _FIXED_BYTES + _ROWS_ALIVE * llm.hidden_size * 4 * rows


def _ways_out(llm: LlmSpec, plan: MemoryPlan, context: int, missing: int) -> list[str]:
    """What can be done about ``missing`` bytes.

    First what suffices by itself, the least effort first; then the rest, the most saving first.
    """
    ways: list[tuple[int, str]] = []
    per_row = plan.cache / context
    fitting = int((context - missing / per_row) // _CONTEXT_STEP * _CONTEXT_STEP)
    smaller = max(fitting, _SMALLEST_CONTEXT)
    if smaller < context:
        saved = int(per_row * (context - smaller))
        ways.append((saved, f"a context of {smaller} instead of {context} (--context {smaller})"))
    if plan.bucketed:
        ways.append((plan.bucketed, "one size bucket at a time (--buckets 1)"))
    for kind, way in (("float16", "half precision"), ("int8", "eight bits")):
        share = 1 - _ELEMENT_BYTES[kind] / _ELEMENT_BYTES[llm.cache]
        if share > 0:
            said = f"a cache of {way} (compile with --llm-cache {kind})"
            ways.append((int(plan.cache * share), said))
    for precision in ("int8", "int4"):
        if _BITS[precision] < _BITS[llm.precision]:
            saved = int(plan.decoder * (1 - _BITS[precision] / _BITS[llm.precision]))
            way = f"weights of {precision[3:]} bits (compile with --llm-precision {precision})"
            ways.append((saved, way))
    enough = [way for way in ways if way[0] >= missing]
    partial = sorted((way for way in ways if way[0] < missing), reverse=True)
    return [
        *(f"{way} saves {_mb(saved)}, which is enough" for saved, way in enough),
        *(f"{way} saves {_mb(saved)}" for saved, way in partial),
        f"{_mb(missing)} more free, with other programs closed",
    ]


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
