"""The compiler's driver: a checkpoint folder in, a bundle folder out.

Steps: read config and keys; convert the tokenizer; build every stage (or take it from the cache);
write tables and files into a hidden folder; compare the whole chain with torch; publish. A failure
or an interruption before the last step leaves no bundle.

Stages do not depend on each other, so `jobs` processes can build them side by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visionllm_edge.export.build_stage import STAGE_FILE, ModelPair, build_stage
from visionllm_edge.export.cache import StageCache, key_of, package_versions
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.end_to_end import check_end_to_end
from visionllm_edge.export.preprocessing import PREPROCESS
from visionllm_edge.export.progress import Progress
from visionllm_edge.export.stages import STAGES, Stage
from visionllm_edge.export.tokenizer import ConvertedTokenizer, convert_tokenizer
from visionllm_edge.runtime.bundle import Bundle, BundleWriter
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import (
    CheckpointInfo,
    DetectorSpec,
    FileEntry,
    LlmSpec,
    Manifest,
    ModelSpec,
    PromptSpec,
    StageSpec,
    SuperlinkSpec,
    TargetSpec,
    TokenizerSpec,
    Variant,
    VisionSpec,
)
from visionllm_edge.runtime.ports import Port
from visionllm_edge.runtime.targets import find_target

__all__ = ["CompileReport", "compile_checkpoint"]

_EMBED_TABLE = "tables/embed_tokens.npy"
_SUPERLINK_TABLE = "tables/superlink_det.npy"
_TOKENIZER = "tokenizer/tokenizer.json"
_PARITY_REPORT = "reports/parity.json"


@dataclass(frozen=True)
class CompileReport:
    """What a compile did.

    Attributes:
        bundle: the folder.
        seconds: wall time.
        built: names of the stages that were built.
        reused: names of the stages that came out of the cache.
        end_to_end: comparison of the whole chain with torch.
    """

    bundle: Path
    seconds: float
    built: tuple[str, ...]
    reused: tuple[str, ...]
    end_to_end: Mapping[str, Any]


def compile_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    target: str = "cpu",
    name: str | None = None,
    cache: StageCache | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> CompileReport:
    """Compile a checkpoint folder into a bundle folder.

    Args:
        checkpoint: folder in the official layout.
        output: the bundle's place; an older bundle there is replaced at the very end.
        target: name of the target.
        name: of the bundle; the checkpoint's by default.
        cache: where stages are kept between compiles; None keeps nothing.
        jobs: processes that build stages. More than one needs an importable main module.
        progress: gets a step per stage; silent by default.

    Raises:
        EdgeError: with what is wrong with checkpoint, config, a stage or the output folder.
    """
    if find_target(target).backend != "onnxruntime":
        raise ConfigError(
            f"target '{target}': a checkpoint is compiled for the cpu, got a target of engines. "
            f"Compile with --target cpu, then `visionllm-edge build BUNDLE --target {target}`."
        )
    progress = progress or Progress(silent=True)
    progress.total = len(STAGES) + 4
    opened = Checkpoint(checkpoint)
    opened.check()
    tokenizer = convert_tokenizer(checkpoint, vocab_size=opened.config.llm.vocab_size)
    progress.step(f"read {checkpoint.name}: {len(opened.entries)} tensors, tokenizer")
    with BundleWriter(output) as writer, contextlib.ExitStack() as stack:
        if cache is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="visionllm-edge-"))
            cache = StageCache(Path(folder))
        keys = {stage.name: _stage_key(opened, stage, target) for stage in STAGES}
        entries = {stage.name: cache.get(keys[stage.name]) for stage in STAGES}
        missing = [stage for stage in STAGES if entries[stage.name] is None]
        for stage in STAGES:
            if stage not in missing:
                progress.step(f"{stage.name}: unchanged, taken from the cache")
        model = load_model(opened)
        for built in _build_all(opened, model, missing, keys, cache, target, jobs, progress):
            entries[built] = cache.get(keys[built])
        specs = {}
        for stage in STAGES:
            entry = entries[stage.name]
            assert entry is not None, "built or found"
            specs[stage.name] = _copy_stage(cache, entry, writer)
        _write_tables(model, writer)
        writer.add_bytes(_TOKENIZER, tokenizer.definition.encode("utf-8"))
        manifest = _manifest(opened, tokenizer, specs, target, name or opened.config.name)
        progress.step("write tables, tokenizer and graphs")
        end_to_end = check_end_to_end(_unpublished(writer, manifest), model)
        _write_report(writer, specs, end_to_end)
        progress.step(
            "compare with torch end to end: boxes within "
            f"{end_to_end['largest_box_difference_px']:.2g} px"
        )
        bundle = writer.commit(manifest)
    progress.step(f"hash and publish {output.name}")
    return CompileReport(
        bundle=bundle,
        seconds=progress.elapsed_s,
        built=tuple(stage.name for stage in missing),
        reused=tuple(stage.name for stage in STAGES if stage not in missing),
        end_to_end=end_to_end,
    )


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
    stages: list[Stage],
    keys: Mapping[str, str],
    cache: StageCache,
    target: str,
    jobs: int,
    progress: Progress,
) -> Iterator[str]:
    """Build stages into the cache; yields the name of each when it is there."""
    if jobs <= 1 or len(stages) <= 1:
        pair = ModelPair(model)
        for stage in stages:
            started = time.monotonic()
            with cache.writing(keys[stage.name]) as folder:
                build_stage(pair, stage, folder, target=target, note=_indented(progress))
            progress.step(f"{stage.name}: built", seconds=time.monotonic() - started)
            yield stage.name
        return
    # Stages with the most to trace first, so that no process is left with a long one at the end.
    order = sorted(stages, key=lambda stage: -_weight(stage, checkpoint.config))
    tasks = [
        (str(checkpoint.folder), stage.name, keys[stage.name], str(cache.folder), target)
        for stage in order
    ]
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with _deaf_to_interrupts():
        pool = context.Pool(min(jobs, len(stages)), torch.set_num_threads, (threads,))
    # Leaving the block ends the pool's processes, also after an interruption.
    with pool:
        for name, seconds, notes in pool.imap_unordered(_build_in_worker, tasks):
            for text in notes:
                progress.note(f"        {text}")
            progress.step(f"{name}: built", seconds=seconds)
            yield name


def _weight(stage: Stage, config: VisionLLMConfig) -> int:
    variants = len(config.deployment.det_buckets) if stage.bucketed else 1
    return variants * (3 if stage.name in ("det_encoder", "det_decoder") else 1)


def _indented(progress: Progress) -> Any:
    return lambda text: progress.note(f"        {text}")


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside the block ignore Ctrl-C from their first instruction.

    The parent decides what an interruption means; a worker would only print a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only, and only it may set handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _build_in_worker(task: tuple[str, str, str, str, str]) -> tuple[str, float, list[str]]:
    folder, name, key, cache_folder, target = task
    started = time.monotonic()
    pair = _worker_model(folder)
    stage = next(stage for stage in STAGES if stage.name == name)
    notes: list[str] = []
    with StageCache(Path(cache_folder)).writing(key) as entry:
        build_stage(pair, stage, entry, target=target, note=notes.append)
    return name, time.monotonic() - started, notes


_loaded: dict[str, ModelPair] = {}


def _worker_model(folder: str) -> ModelPair:
    """The checkpoint's model, loaded once per worker process."""
    if folder not in _loaded:
        _loaded[folder] = ModelPair(load_model(Checkpoint(Path(folder))))
    return _loaded[folder]


def _copy_stage(cache: StageCache, entry: Path, writer: BundleWriter) -> StageSpec:
    for relative in cache.files(entry):
        if relative != STAGE_FILE:
            writer.add_file(relative, entry / relative)
    content = json.loads((entry / STAGE_FILE).read_text(encoding="utf-8"))
    variants = tuple(
        Variant(
            None if v["bucket"] is None else (v["bucket"][0], v["bucket"][1]),
            v["model"],
            v["canonical"],
        )
        for v in content["variants"]
    )
    return StageSpec(
        inputs=_ports(content["inputs"]),
        outputs=_ports(content["outputs"]),
        variants=variants,
        lowering=content["lowering"],
        parity=content["parity"],
    )


def _ports(entries: list[dict[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(e["name"], e["dtype"], tuple(e["shape"])) for e in entries)


def _write_tables(model: VisionLLM, writer: BundleWriter) -> None:
    embed = model.llm.get_parameter("model.embed_tokens.weight")
    writer.add_array(_EMBED_TABLE, embed.detach().numpy())
    writer.add_array(_SUPERLINK_TABLE, model.emb_embeddings_det.weight.detach().numpy())


def _manifest(
    checkpoint: Checkpoint,
    tokenizer: ConvertedTokenizer,
    stages: Mapping[str, StageSpec],
    target: str,
    name: str,
) -> Manifest:
    config = checkpoint.config
    llm, vision, deployment = config.llm, config.vision, config.deployment
    row = find_target(target)
    return Manifest(
        family="visionllm_v2",
        name=name,
        created_by=package_versions(),
        checkpoint=CheckpointInfo(checkpoint.fingerprint()),
        target=TargetSpec(row.name, row.backend, row.precision),
        stages=stages,
        model=ModelSpec(
            llm=LlmSpec(
                hidden_size=llm.hidden_size,
                num_layers=llm.num_hidden_layers,
                num_kv_heads=llm.num_key_value_heads,
                head_dim=llm.head_dim,
                vocab_size=llm.vocab_size,
                max_positions=llm.max_position_embeddings,
            ),
            vision=VisionSpec(
                image_size=vision.image_size,
                tokens_per_tile=vision.tokens_per_tile,
                max_tiles=deployment.max_tiles,
            ),
            superlink=_superlink(config),
            embed_table=_EMBED_TABLE,
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
        tokenizer=TokenizerSpec(
            file=_TOKENIZER,
            space_after_control=tokenizer.space_after_control,
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            controls=tokenizer.controls,
        ),
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


def _unpublished(writer: BundleWriter, manifest: Manifest) -> Bundle:
    """What is written so far, readable by this process only."""
    root = writer.path("any").parent
    entries = {
        path.relative_to(root).as_posix(): FileEntry(path.stat().st_size, "0" * 64)
        for path in root.rglob("*")
        if path.is_file()
    }
    return Bundle(root, dataclasses.replace(manifest, files=entries))


def _write_report(
    writer: BundleWriter, stages: Mapping[str, StageSpec], end_to_end: Mapping[str, Any]
) -> None:
    report = {
        "stages": {name: spec.parity["worst"] for name, spec in stages.items()},
        "end_to_end": end_to_end,
    }
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    writer.add_bytes(_PARITY_REPORT, text.encode("utf-8"))
