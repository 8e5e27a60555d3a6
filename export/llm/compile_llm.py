"""The driver for a language model alone, and the way of every decoder into the stage cache.

A folder of a LLaMA or a GGUF file becomes a bundle of family `llama`: one stage, an embedding
table, a tokenizer and a conversation template.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

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
from visionllm_edge.export.config import read_json
from visionllm_edge.export.llm.build_decoder import DECODER, build_decoder
from visionllm_edge.export.llm.decoder_plan import DecoderPlan, plan_for_llm, rounds_again
from visionllm_edge.export.llm.end_to_end import check_language_model
from visionllm_edge.export.llm.tokenizer import convert_llm_tokenizer
from visionllm_edge.export.llm.weights import open_llm
from visionllm_edge.export.progress import Progress
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.manifest import (
    LLAMA,
    CheckpointInfo,
    Manifest,
    ModelSpec,
    TargetSpec,
)
from visionllm_edge.runtime.targets import find_target

__all__ = ["compile_language_model", "decoder_into_cache", "decoder_key", "is_language_model"]


def is_language_model(path: Path) -> bool:
    """Whether a path is a GGUF file or a LLaMA folder; anything else is taken for a VisionLLM v2.

    Raises:
        CheckpointError: nothing there, or no readable config.json.
    """
    return path.is_file() or read_json(path).get("model_type") == "llama"


def decoder_key(plan: DecoderPlan, target: str) -> str:
    """The decoder's key in the stage cache: the only one that the precision is a part of."""
    return key_of(
        {
            "stage": DECODER,
            "target": find_target(target).to_dict(),
            "config": asdict(plan.source.config),
            "weights": plan.source.fingerprint(),
            "precision": asdict(plan.precision),
            "calibration": plan.calibration_id,
        },
        llm=True,
    )


def _work_key(plan: DecoderPlan) -> str:
    """Of the half-done work: what the quantised numbers are made from.

    Our source is no part of it. The quantiser marks every file with its own, so that work is not
    lost where only the graph or a check has changed.
    """
    parts = {
        "weights": plan.source.fingerprint(),
        "precision": [plan.precision.option, plan.precision.block_size, plan.precision.head],
        "calibration": plan.calibration_id,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def decoder_into_cache(
    plan: DecoderPlan, key: str, cache: StageCache, *, target: str, progress: Progress
) -> None:
    """Build the decoder under its key, going on where an interrupted build stopped."""
    started = time.monotonic()
    with cache.working(_work_key(plan)) as work, cache.writing(key) as folder:
        build_decoder(
            plan,
            folder,
            work=work,
            target=target,
            note=lambda text: progress.note(f"        {text}"),
        )
    progress.step(f"{DECODER}: built", seconds=time.monotonic() - started)


def compile_language_model(
    path: Path,
    output: Path,
    *,
    target: str,
    name: str | None,
    cache: StageCache,
    progress: Progress,
    precision: LlmPrecision,
    calibration_text: Path | None,
) -> CompileReport:
    """Compile a language model into a bundle of family `llama`; see `compile_checkpoint`.

    Raises:
        EdgeError: with what is wrong with the model, its tokenizer or the output folder.
    """
    progress.total = 5
    source = open_llm(path)
    tokenizer, prompt = convert_llm_tokenizer(source)
    plan = plan_for_llm(source, tokenizer, prompt, precision, calibration_text)
    precision = plan.precision
    progress.step(f"read {path.name}: {len(source.names())} tensors, tokenizer")
    if rounds_again(plan):
        progress.note(
            "        its matrices are in four bits with minimums and are rounded again; "
            "--llm-precision stored keeps them"
        )
    with BundleWriter(output) as writer:
        key = decoder_key(plan, target)
        entry = cache.get(key)
        built = entry is None
        if entry is None:
            decoder_into_cache(plan, key, cache, target=target, progress=progress)
            entry = cache.get(key)
            assert entry is not None, "just built"
        else:
            progress.step(f"{DECODER}: unchanged, taken from the cache")
        stages = {DECODER: copy_stage(cache, entry, writer)}
        write_embedding(source, precision, writer)
        writer.add_bytes(TOKENIZER, tokenizer.definition.encode("utf-8"))
        row = find_target(target)
        manifest = Manifest(
            family=LLAMA,
            name=name or source.name,
            created_by=package_versions(),
            checkpoint=CheckpointInfo(source.fingerprint()),
            target=TargetSpec(row.name, row.backend, row.precision),
            stages=stages,
            model=ModelSpec(
                llm=llm_spec(source.config, precision), superlink={}, embed_table=EMBED_TABLE
            ),
            tokenizer=tokenizer_spec(tokenizer),
            prompt=prompt,
        )
        progress.step("write table, tokenizer and graphs")
        end_to_end = check_language_model(unpublished(writer, manifest), source.config)
        write_report(writer, stages, end_to_end)
        progress.step(f"continue a text by the runtime: {end_to_end['summary']}")
        bundle = writer.commit(manifest)
    progress.step(f"hash and publish {output.name}")
    return CompileReport(
        bundle=bundle,
        seconds=progress.elapsed_s,
        built=(DECODER,) if built else (),
        reused=() if built else (DECODER,),
        end_to_end=end_to_end,
    )
