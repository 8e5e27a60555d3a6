"""Bundles that a sweep compiles, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from visionllm_edge.benchmarks.bench.measurement import write_result
from visionllm_edge.benchmarks.bench.page.front import front_plot
from visionllm_edge.benchmarks.bench.sweep import Recipe, Sweep, refusals, sweep_rows
from visionllm_edge.benchmarks.bench.table_text import markdown
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.targets import Target, find_target

__all__ = ["check_recipes", "compiler", "write_sweep"]

_HOST_BACKEND = "onnxruntime"


def check_recipes(recipes: Sequence[Recipe], checkpoint: Path) -> None:
    """Refuse what cannot be made or measured here, before the first compile.

    Raises:
        ConfigError: an unknown target or stage, a precision that a target lacks, or a number of
            queries that the checkpoint cannot follow.
        BackendError: a target whose engines do not run on this machine.
    """
    from visionllm_edge.export.config import read_config, with_queries
    from visionllm_edge.export.llm.build_decoder import DECODER
    from visionllm_edge.export.stage_precisions import stage_precisions
    from visionllm_edge.export.stages import stages_of

    config = read_config(checkpoint)
    for queries in dict.fromkeys(recipe.queries for recipe in recipes):
        if queries is not None:
            with_queries(config, queries)
    targets = {name: find_target(name) for name in dict.fromkeys(r.target for r in recipes)}
    ends = {s.name: s.ports(config) for s in stages_of(config) if s.name != DECODER}
    for recipe in recipes:
        stage_precisions(ends, targets[recipe.target], *_vision(recipe))
    for target in targets.values():
        _require_here(target)


def compiler(checkpoint: Path, work: Path) -> Callable[[Recipe], Path]:
    """Makes the bundles of recipes from a checkpoint, in the work folder.

    Raises:
        EdgeError: when called, if the checkpoint cannot be compiled so.
    """

    def compile_bundle(recipe: Recipe) -> Path:
        from visionllm_edge.export.cache import StageCache
        from visionllm_edge.export.compile import compile_checkpoint
        from visionllm_edge.export.quantize.policy import LlmPrecision

        target = find_target(recipe.target)
        engines = target.backend != _HOST_BACKEND
        # Engines are made from the graphs in fp32, which every bundle carries.
        vision = None if engines else recipe.vision
        common, own = (None, {}) if engines else _vision(recipe)
        named = (("b", recipe.block), ("vision-", vision), ("q", recipe.queries))
        name = "-".join([recipe.llm, *(f"{what}{value}" for what, value in named if value)])
        name = name.replace("=", "-").replace(",", "-")
        bundle = compile_checkpoint(
            checkpoint,
            work / "bundles" / name,
            cache=StageCache(work / "cache"),
            llm=LlmPrecision.from_options(recipe.llm, recipe.block or None, None, None),
            precision=common,
            stage_precision=own,
            queries=recipe.queries,
        ).bundle
        return _with_engines(bundle, target, recipe) if engines else bundle

    return compile_bundle


def _vision(recipe: Recipe) -> tuple[str | None, dict[str, str]]:
    """The precision of the stages beside the language model: common, and by stage."""
    from visionllm_edge.export.stage_precisions import precisions_for

    return precisions_for(recipe.vision.split(",") if recipe.vision else ())


def _require_here(target: Target) -> None:
    """Engines are measured where they run."""
    if target.backend == _HOST_BACKEND:
        return
    from visionllm_edge.runtime.engines.gpu import Gpu, find_gpu
    from visionllm_edge.runtime.engines.kit_build import check_machine

    gpu = find_gpu()
    if not isinstance(gpu, Gpu) or gpu.sm not in target.sm:
        wanted = " or ".join(f"{sm // 10}.{sm % 10}" for sm in target.sm)
        got = f"{gpu.name} ({gpu.sm / 10})" if isinstance(gpu, Gpu) else gpu.reason
        raise BackendError(
            f"bench sweep: target '{target.name}' expected a GPU of compute capability {wanted} to "
            f"run its engines on, got: {got}. Start the sweep on that device, or leave the target "
            "out; `visionllm-edge doctor` shows what runs here."
        )
    check_machine(target)


def _with_engines(bundle: Path, target: Target, recipe: Recipe) -> Path:
    """A bundle beside the first, with engines of the target; the language model in its default."""
    from visionllm_edge.export.kit import KitOptions, make_kit
    from visionllm_edge.export.llm.build_decoder import DECODER
    from visionllm_edge.runtime.engines.kit_build import build_kit

    name = f"{bundle.name}-{target.name}-{recipe.vision or target.precision}"
    kit, output = bundle.parent / f"{name}.kit", bundle.parent / name
    common, own = _vision(recipe)
    options = KitOptions(precision=common, stage_precision={DECODER: target.precision, **own})
    make_kit(bundle, kit, target.name, options)
    built = build_kit(kit, output).bundle
    assert built is not None, "every stage was asked for"
    return built


def write_sweep(sweep: Sweep, work: Path) -> list[Path]:
    """Write each point's result, a Markdown table, and a picture per task."""
    points, paths = sweep.points, []
    for index, point in enumerate(points):
        paths.append(work / "results" / f"{index:03d}.json")
        write_result(paths[-1], point.result)
    texts = {"sweep.md": "\n\n".join([markdown(sweep_rows(points)), *refusals(sweep)]) + "\n"}
    for task in points[0].result.tasks:
        texts[f"{task.name}.svg"] = front_plot(points, task.name)
    for name, content in texts.items():
        paths.append(work / name)
        paths[-1].write_text(content, encoding="utf-8")
    return paths
