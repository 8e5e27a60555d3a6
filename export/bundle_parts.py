"""What every bundle is put together from, whatever its family: stages, tables, sizes, reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionllm_edge.export.build_stage import STAGE_FILE
from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.weights import EMBEDDING, LlmWeights
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.tokenizer import ConvertedTokenizer
from visionllm_edge.runtime.bundle import Bundle, BundleWriter
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.manifest import (
    FileEntry,
    LlmSpec,
    Manifest,
    StageSpec,
    TokenizerSpec,
    Variant,
)
from visionllm_edge.runtime.ports import Port

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "EMBED_TABLE",
    "TOKENIZER",
    "CompileReport",
    "copy_stage",
    "llm_spec",
    "tokenizer_spec",
    "unpublished",
    "write_embedding",
    "write_report",
]

EMBED_TABLE = "tables/embed_tokens.npy"
TOKENIZER = "tokenizer/tokenizer.json"

_PARITY_REPORT = "reports/parity.json"
# Rows of the embedding table that are converted at once.
_TABLE_ROWS = 4096


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


def copy_stage(cache: StageCache, entry: Path, writer: BundleWriter) -> StageSpec:
    """Copy the files of a built stage into a bundle; returns what the manifest says about it."""
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


def write_embedding(source: LlmWeights, precision: LlmPrecision, writer: BundleWriter) -> None:
    """Write the embedding table, some rows at a time; float16 beside quantised weights.

    Raises:
        ExportError: a number that float16 cannot hold.
    """
    table: Tensor = source.tensor(EMBEDDING)
    dtype = np.dtype("float16" if precision.quantized else "float32")
    most = float(np.finfo("float16" if precision.quantized else "float32").max)
    shape = tuple(table.shape)
    with writer.path(EMBED_TABLE).open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": dtype.str, "fortran_order": False, "shape": shape}
        )
        for start in range(0, shape[0], _TABLE_ROWS):
            wide = table[start : start + _TABLE_ROWS].detach().float().numpy()
            largest = float(np.abs(wide).max(initial=0.0))
            if not largest <= most:
                raise ExportError(
                    f"embedding table: expected numbers that {dtype.name} can hold, got up to "
                    f"{largest:.3g} in rows {start} to {start + len(wide) - 1}. Compile with "
                    "--llm-precision fp32."
                )
            stream.write(wide.astype(dtype).tobytes())


def llm_spec(config: LlmConfig, precision: LlmPrecision) -> LlmSpec:
    """Sizes and precision of the language model for the manifest."""
    return LlmSpec(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        precision=precision.held,
        block_size=precision.block_size,
        cache=precision.cache,
    )


def tokenizer_spec(tokenizer: ConvertedTokenizer) -> TokenizerSpec:
    """The tokenizer's section of the manifest."""
    return TokenizerSpec(
        file=TOKENIZER,
        space_after_control=tokenizer.space_after_control,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        controls=tokenizer.controls,
    )


def unpublished(writer: BundleWriter, manifest: Manifest) -> Bundle:
    """What is written so far, readable by this process only."""
    root = writer.path("any").parent
    entries = {
        path.relative_to(root).as_posix(): FileEntry(path.stat().st_size, "0" * 64)
        for path in root.rglob("*")
        if path.is_file()
    }
    return Bundle(root, dataclasses.replace(manifest, files=entries))


def write_report(
    writer: BundleWriter, stages: Mapping[str, StageSpec], end_to_end: Mapping[str, Any]
) -> None:
    """Write the worst tensor of every stage and the comparison of the whole chain."""
    report = {
        "stages": {name: spec.parity["worst"] for name, spec in stages.items()},
        "end_to_end": end_to_end,
    }
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    writer.add_bytes(_PARITY_REPORT, text.encode("utf-8"))
