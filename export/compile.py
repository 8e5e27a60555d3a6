"""The compiler's driver: a checkpoint in, a bundle folder out.

Steps: read config and keys; convert the tokenizer; build every stage (or take it from the cache);
write tables and files into a hidden folder; compare the whole chain with torch; publish. A failure
or an interruption before the last step leaves no bundle.

The language decoder is built in this process, matrix by matrix. The other stages do not depend on
it nor on each other, so `jobs` processes can build them side by side. A language model alone takes
the way of `visionllm_edge.export.llm.compile_llm`.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from visionllm_edge.export.build_stage import ModelPair, build_stage
from visionllm_edge.export.bundle_parts import (
    EMBED_TABLE,
    TOKENIZER,
    CompileReport,
    copy_stage,
    llm_spec,
    tokenizer_spec,
    unpublished,
    write_embedding,
    write_report,
)
from visionllm_edge.export.cache import StageCache, key_of, package_versions
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.end_to_end import check_end_to_end
from visionllm_edge.export.llm.build_decoder import DECODER
from visionllm_edge.export.llm.compile_llm import (
    compile_language_model,
    decoder_into_cache,
    decoder_key,
    is_language_model,
)
from visionllm_edge.export.llm.decoder_plan import DecoderPlan, plan_for_checkpoint
from visionllm_edge.export.preprocessing import PREPROCESS
from visionllm_edge.export.progress import Progress
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.stage_workers import StageWorkers
from visionllm_edge.export.stages import STAGES, Stage
from visionllm_edge.export.tokenizer import ConvertedTokenizer, convert_tokenizer
from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import (
    VISIONLLM_V2,
    CheckpointInfo,
    DetectorSpec,
    Manifest,
    ModelSpec,
    PromptSpec,
    StageSpec,
    SuperlinkSpec,
    TargetSpec,
    VisionSpec,
)
from visionllm_edge.runtime.targets import find_target

__all__ = ["CompileReport", "compile_checkpoint"]

_SUPERLINK_TABLE = "tables/superlink_det.npy"
_FP32 = LlmPrecision()


def compile_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    target: str = "cpu",
    name: str | None = None,
    cache: StageCache | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    llm: LlmPrecision = _FP32,
    calibration_text: Path | None = None,
) -> CompileReport:
    """Compile a checkpoint into a bundle folder.

    Args:
        checkpoint: folder of a VisionLLM v2 in the official layout, or a language model alone: a
            folder of a LLaMA, or a GGUF file.
        output: the bundle's place; an older bundle there is replaced at the very end.
        target: name of the target.
        name: of the bundle; the checkpoint's by default.
        cache: where stages are kept between compiles, and the half-done work of an interrupted one;
            None keeps nothing.
        jobs: processes that build stages. More than one needs an importable main module.
        progress: gets a step per stage; silent by default.
        llm: precision of the language decoder.
        calibration_text: a text file for the activation-aware search; one of ours by default.

    Raises:
        EdgeError: with what is wrong with checkpoint, config, a stage or the output folder.
    """
    if find_target(target).backend != "onnxruntime":
        raise ConfigError(
            f"target '{target}': a checkpoint is compiled for the cpu, got a target of engines. "
            f"Compile with --target cpu, then `visionllm-edge build BUNDLE --target {target}`."
        )
    progress = progress or Progress(silent=True)
    with contextlib.ExitStack() as stack:
        if cache is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="visionllm-edge-"))
            cache = StageCache(Path(folder))
        if is_language_model(checkpoint):
            return compile_language_model(
                checkpoint,
                output,
                target=target,
                name=name,
                cache=cache,
                progress=progress,
                precision=llm,
                calibration_text=calibration_text,
            )
        opened = Checkpoint(checkpoint)
        opened.check()
        tokenizer = convert_tokenizer(checkpoint, vocab_size=opened.config.llm.vocab_size)
        progress.total = len(STAGES) + 4
        progress.step(f"read {checkpoint.name}: {len(opened.entries)} tensors, tokenizer")
        writer = stack.enter_context(BundleWriter(output))
        model = load_model(opened)
        plan = plan_for_checkpoint(opened, model, tokenizer, llm, calibration_text)
        built, specs = _stages(opened, model, plan, writer, cache, target, jobs, progress)
        _write_tables(model, plan, writer)
        writer.add_bytes(TOKENIZER, tokenizer.definition.encode("utf-8"))
        manifest = _manifest(
            opened, tokenizer, specs, target, name or opened.config.name, plan.precision
        )
        progress.step("write tables, tokenizer and graphs")
        end_to_end = check_end_to_end(unpublished(writer, manifest), model)
        write_report(writer, specs, end_to_end)
        progress.step(
            "compare with torch end to end: boxes within "
            f"{end_to_end['largest_box_difference_px']:.2g} px"
        )
        bundle = writer.commit(manifest)
    progress.step(f"hash and publish {output.name}")
    return CompileReport(
        bundle=bundle,
        seconds=progress.elapsed_s,
        built=tuple(stage.name for stage in STAGES if stage.name in built),
        reused=tuple(stage.name for stage in STAGES if stage.name not in built),
        end_to_end=end_to_end,
    )


def _stages(
    opened: Checkpoint,
    model: VisionLLM,
    plan: DecoderPlan,
    writer: BundleWriter,
    cache: StageCache,
    target: str,
    jobs: int,
    progress: Progress,
) -> tuple[set[str], dict[str, StageSpec]]:
    """Copy every stage into the bundle; returns the names of those that were built."""
    keys = {stage.name: _stage_key(opened, stage, target) for stage in STAGES}
    keys[DECODER] = decoder_key(plan, target)
    entries = {name: cache.get(key) for name, key in keys.items()}
    missing = [stage for stage in STAGES if entries[stage.name] is None]
    for name in (stage.name for stage in STAGES if stage not in missing):
        progress.step(f"{name}: unchanged, taken from the cache")
    for name in _build_all(opened, model, plan, missing, keys, cache, target, jobs, progress):
        entries[name] = cache.get(keys[name])
    specs = {}
    for stage in STAGES:
        entry = entries[stage.name]
        assert entry is not None, "built or found"
        specs[stage.name] = copy_stage(cache, entry, writer)
    return {stage.name for stage in missing}, specs


def _stage_key(checkpoint: Checkpoint, stage: Stage, target: str) -> str:
    # Example inputs of a detector stage come out of the whole chain, but a graph that was right on
    # one set of them stays right when another component changes.
    return key_of(
        {
            "stage": stage.name,
            "target": find_target(target).to_dict(),
            "config": dict(checkpoint.config.raw),
            "weights": checkpoint.fingerprint(stage.weight_prefixes),
        }
    )


def _build_all(
    checkpoint: Checkpoint,
    model: VisionLLM,
    plan: DecoderPlan,
    stages: list[Stage],
    keys: Mapping[str, str],
    cache: StageCache,
    target: str,
    jobs: int,
    progress: Progress,
) -> Iterator[str]:
    """Build stages into the cache; yields the name of each when it is there."""
    traced = [stage for stage in stages if stage.name != DECODER]
    decoder = len(traced) < len(stages)

    def build_decoder() -> None:
        decoder_into_cache(plan, keys[DECODER], cache, target=target, progress=progress)

    if jobs <= 1 or len(stages) <= 1:
        if decoder:
            build_decoder()
            yield DECODER
        pair = ModelPair(model)
        for stage in traced:
            started = time.monotonic()
            with cache.writing(keys[stage.name]) as folder:
                build_stage(
                    pair,
                    stage,
                    folder,
                    target=target,
                    note=lambda text: progress.note(f"        {text}"),
                )
            progress.step(f"{stage.name}: built", seconds=time.monotonic() - started)
            yield stage.name
        return
    with StageWorkers(checkpoint.folder, cache, target, min(jobs, len(traced))) as workers:
        running = workers.build(traced, keys, checkpoint.config)
        if decoder:
            build_decoder()
            yield DECODER
        for built in running:
            for text in built.notes:
                progress.note(f"        {text}")
            progress.step(f"{built.name}: built", seconds=built.seconds)
            yield built.name


def _write_tables(model: VisionLLM, plan: DecoderPlan, writer: BundleWriter) -> None:
    write_embedding(plan.source, plan.precision, writer)
    writer.add_array(_SUPERLINK_TABLE, model.emb_embeddings_det.weight.detach().numpy())


def _manifest(
    checkpoint: Checkpoint,
    tokenizer: ConvertedTokenizer,
    stages: Mapping[str, StageSpec],
    target: str,
    name: str,
    precision: LlmPrecision,
) -> Manifest:
    config = checkpoint.config
    vision, deployment = config.vision, config.deployment
    row = find_target(target)
    return Manifest(
        family=VISIONLLM_V2,
        name=name,
        created_by=package_versions(),
        checkpoint=CheckpointInfo(checkpoint.fingerprint()),
        target=TargetSpec(row.name, row.backend, row.precision),
        stages=stages,
        model=ModelSpec(
            llm=llm_spec(config.llm, precision),
            vision=VisionSpec(
                image_size=vision.image_size,
                tokens_per_tile=vision.tokens_per_tile,
                max_tiles=deployment.max_tiles,
            ),
            superlink=_superlink(config),
            embed_table=EMBED_TABLE,
            detector=DetectorSpec(
                buckets=deployment.det_buckets,
                shortest_edge=deployment.det_shortest_edge,
                longest_edge=deployment.det_longest_edge,
                divisor=32,
                max_text_len=config.detector.max_text_len,
                num_queries=config.detector.num_queries,
            ),
        ),
        preprocess=PREPROCESS,
        tokenizer=tokenizer_spec(tokenizer),
        prompt=PromptSpec(deployment.template),
    )


def _superlink(config: VisionLLMConfig) -> dict[str, SuperlinkSpec]:
    """Every routing token; only the object decoder is built, so only its table is shipped."""
    rows, rows_gen = config.num_embs, config.num_embs_gen
    return {
        "det": SuperlinkSpec(("[DET]", "[SEG]", "[GRD]"), rows, _SUPERLINK_TABLE, "detector"),
        "pose": SuperlinkSpec(("[POSE]",), rows),
        "gen": SuperlinkSpec(("[GEN]",), rows_gen),
        "edit": SuperlinkSpec(("[EDIT]",), rows_gen),
    }
