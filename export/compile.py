"""The compiler's driver: a checkpoint in, a bundle folder out.

Steps: read config and keys; convert the tokenizer; build every stage (or take it from the cache);
write tables and files into a hidden folder; compare the whole chain with torch; publish. A failure
or an interruption before the last step leaves no bundle.

The language decoder is built in this process, matrix by matrix. The other stages do not depend on
it nor on each other, so `jobs` processes can build them side by side. A model that is too large to
be in memory is built one stage after the other, with only the parts of that stage in memory
(`visionllm_edge.export.streamed_model`), and is not compared end to end. A language model alone
takes the way of `visionllm_edge.export.llm.compile_llm`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from visionllm_edge.export.build_stage import ModelPair, build_stage
from visionllm_edge.export.bundle_decoders import (
    detector_spec,
    pose_spec,
    superlink_specs,
    write_superlink_tables,
)
from visionllm_edge.export.bundle_diffusion import diffusion_spec, write_empty_prompts
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
from visionllm_edge.export.checkpoint import Checkpoint
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.end_to_end import compare_end_to_end, with_extent
from visionllm_edge.export.llm.build_decoder import DECODER
from visionllm_edge.export.llm.compile_llm import (
    compile_language_model,
    decoder_into_cache,
    decoder_key,
    is_language_model,
)
from visionllm_edge.export.llm.decoder_plan import DecoderPlan, plan_for_checkpoint
from visionllm_edge.export.preprocessing import preprocessing
from visionllm_edge.export.progress import Progress
from visionllm_edge.export.quantize.calibration import Calibration
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.stage_precisions import stage_precisions
from visionllm_edge.export.stage_workers import StageWorkers
from visionllm_edge.export.stages import Stage, stages_of
from visionllm_edge.export.streamed_model import open_model
from visionllm_edge.export.tokenizer import ConvertedTokenizer, convert_tokenizer
from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import (
    VISIONLLM_V2,
    CheckpointInfo,
    Manifest,
    ModelSpec,
    PromptSpec,
    StageSpec,
    TargetSpec,
    VisionSpec,
)
from visionllm_edge.runtime.targets import find_target

__all__ = ["CompileReport", "compile_checkpoint"]

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
    precision: str | None = None,
    stage_precision: Mapping[str, str] | None = None,
    calibration_text: Path | None = None,
    queries: int | None = None,
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
        precision: of the other stages; int8 for those that can be. The target's by default.
        stage_precision: stage -> its own.
        calibration_text: a text file for the activation-aware search; one of ours by default.
        queries: that the object decoder follows; all that the checkpoint has by default.

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
            _refuse_queries(checkpoint, queries)
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
        if queries is not None:
            opened.take_queries(queries)
        tokenizer = convert_tokenizer(checkpoint, vocab_size=opened.config.llm.vocab_size)
        table = stages_of(opened.config)
        precisions = _precisions(opened, target, precision, stage_precision or {})
        progress.total = len(table) + 4
        progress.step(f"read {checkpoint.name}: {len(opened.entries)} tensors, tokenizer")
        writer = stack.enter_context(BundleWriter(output))
        pair = open_model(opened)
        if not pair.whole:
            jobs = 1  # one part of the model in memory at a time
            progress.note(f"        {opened.weight_count() / 1e9:.1f} billion weights, streamed")
        plan = _releasing(
            plan_for_checkpoint(opened, pair.model, tokenizer, llm, calibration_text), pair
        )
        job = _Job(opened, pair, plan, cache, target, precisions, jobs, progress)
        built, specs = _stages(job, writer)
        _write_tables(pair.model, plan, writer)
        pair.release()
        writer.add_bytes(TOKENIZER, tokenizer.definition.encode("utf-8"))
        manifest = _manifest(
            opened, tokenizer, specs, target, name or opened.config.name, plan.precision
        )
        progress.step("write tables, tokenizer and graphs")
        end_to_end = compare_end_to_end(unpublished(writer, manifest), pair)
        write_report(writer, specs, end_to_end)
        progress.step(f"compare with torch end to end: {end_to_end['summary']}")
        bundle = writer.commit(manifest)
    progress.step(f"hash and publish {output.name}")
    return CompileReport(
        bundle=bundle,
        seconds=progress.elapsed_s,
        built=tuple(stage.name for stage in table if stage.name in built),
        reused=tuple(stage.name for stage in table if stage.name not in built),
        end_to_end=end_to_end,
    )


def _refuse_queries(checkpoint: Path, queries: int | None) -> None:
    if queries is not None:
        raise ConfigError(
            f"checkpoint '{checkpoint.name}': expected a VisionLLM v2 for a number of queries "
            f"({queries}), got a language model alone, which has no object decoder. "
            "Leave --queries out."
        )


def _releasing(plan: DecoderPlan, pair: ModelPair) -> DecoderPlan:
    """The plan, whose calibration lets go of the vision tower before anything is quantised."""
    calibration = plan.calibration
    if calibration is None:
        return plan

    def calibrate() -> Calibration:
        made = calibration()
        pair.release()
        return made

    return dataclasses.replace(plan, calibration=calibrate)


def _precisions(
    checkpoint: Checkpoint, target: str, common: str | None, own: Mapping[str, str]
) -> dict[str, str]:
    """Stage -> precision, without the language decoder."""
    if DECODER in own:
        raise ConfigError(
            f"stage '{DECODER}': expected its precision by --llm-precision (fp32, int8, int4, "
            f"int4-awq or stored), got --precision {DECODER}={own[DECODER]}."
        )
    config = checkpoint.config
    ends = {s.name: s.ports(config) for s in stages_of(config) if s.name != DECODER}
    return stage_precisions(ends, find_target(target), common, own)


@dataclass(frozen=True)
class _Job:
    """What building the stages needs."""

    checkpoint: Checkpoint
    pair: ModelPair
    plan: DecoderPlan
    cache: StageCache
    target: str
    precisions: Mapping[str, str]
    jobs: int
    progress: Progress

    def key(self, stage: Stage) -> str:
        """Of the stage's entry in the cache."""
        if stage.name == DECODER:
            return decoder_key(self.plan, self.target)
        # Example inputs of a detector stage come out of the whole chain, but a graph that was right
        # on one set of them stays right when another component changes.
        content: dict[str, object] = {
            "stage": stage.name,
            "target": find_target(self.target).to_dict(),
            "config": dict(self.checkpoint.config.raw),
            "weights": self.checkpoint.fingerprint(stage.weight_prefixes),
            "precision": self.precisions[stage.name],
        }
        if stage.sees_queries:
            content["queries"] = self.checkpoint.config.detector.queries
        return key_of(content)


def _stages(job: _Job, writer: BundleWriter) -> tuple[set[str], dict[str, StageSpec]]:
    """Copy every stage into the bundle; returns the names of those that were built."""
    table = stages_of(job.checkpoint.config)
    keys = {stage.name: job.key(stage) for stage in table}
    entries = {name: job.cache.get(key) for name, key in keys.items()}
    missing = [stage for stage in table if entries[stage.name] is None]
    for name in (stage.name for stage in table if stage not in missing):
        job.progress.step(f"{name}: unchanged, taken from the cache")
    for name in _build_all(job, missing, keys):
        entries[name] = job.cache.get(keys[name])
    specs = {}
    for stage in table:
        entry = entries[stage.name]
        assert entry is not None, "built or found"
        specs[stage.name] = with_extent(copy_stage(job.cache, entry, writer), job.pair)
    return {stage.name for stage in missing}, specs


def _build_all(job: _Job, stages: list[Stage], keys: Mapping[str, str]) -> Iterator[str]:
    """Build stages into the cache; yields the name of each when it is there."""
    traced = [stage for stage in stages if stage.name != DECODER]
    decoder = len(traced) < len(stages)
    pair, cache, target, progress = job.pair, job.cache, job.target, job.progress

    def build_decoder() -> None:
        pair.release()
        decoder_into_cache(job.plan, keys[DECODER], cache, target=target, progress=progress)

    if job.jobs <= 1 or len(stages) <= 1:
        if decoder:
            build_decoder()
            yield DECODER
        for stage in traced:
            started = time.monotonic()
            with cache.writing(keys[stage.name]) as folder:
                build_stage(
                    pair,
                    stage,
                    folder,
                    target=target,
                    precision=job.precisions[stage.name],
                    note=lambda text: progress.note(f"        {text}"),
                )
            pair.release()
            progress.step(f"{stage.name}: built", seconds=time.monotonic() - started)
            yield stage.name
        return
    folder, count = job.checkpoint.folder, min(job.jobs, len(traced))
    with StageWorkers(folder, cache, target, count) as workers:
        running = workers.build(traced, keys, job.precisions, job.checkpoint.config)
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
    write_superlink_tables(model, writer)
    write_empty_prompts(model, writer)


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
            regions=config.use_region_encoder,
            superlink=superlink_specs(config),
            embed_table=EMBED_TABLE,
            detector=detector_spec(config),
            pose=pose_spec(config),
            generation=diffusion_spec(config.generation, "gen"),
            editing=diffusion_spec(config.editing, "edit"),
        ),
        preprocess=preprocessing(config),
        tokenizer=tokenizer_spec(tokenizer),
        prompt=PromptSpec(deployment.template),
    )
