"""The table of ``docs/quantisation.md``: from the numbers to Markdown, and into the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionllm_edge.runtime.errors import ConfigError

__all__ = ["BEGIN", "END", "table", "write_table"]

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

_NAMES = {
    "fp32": "fp32",
    "int8": "INT8",
    "int4": "INT4 RTN",
    "int4-awq": "INT4 AWQ",
    "stored": "as stored",
}
"""By the name of a variant where it is one of these, else by the precision of its bundle."""


def table(result: Mapping[str, Any]) -> str:
    """The measurement as a Markdown table, with what was measured above it."""
    reference = result["reference"]
    environment = result["environment"]
    lines = [
        f"{result['model']}, {reference['tokens']} tokens of text in contexts of "
        f"{result['window']}, {result['prompts']} prompts of up to {result['answer_tokens']} "
        f"tokens, on {environment['processor']}, {environment['threads']} threads.",
        "",
        "| language model | block | decoder MB | cache | cache MB | perplexity | to torch "
        "| KL, nats | same choice | same tokens | same answers |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        f"| torch fp32 | | | | | {reference['perplexity']:.3f} | | | | | |",
    ]
    for name, row in result["variants"].items():
        change = row["perplexity"] / reference["perplexity"] - 1
        lines.append(
            f"| {_NAMES.get(name, _NAMES[row['precision']])} | {row['block_size'] or ''} "
            f"| {row['weight_bytes'] / 1e6:.0f} | {row['cache']} | {row['cache_bytes'] / 1e6:.0f} "
            f"| {row['perplexity']:.3f} | {change:+.2%} "
            f"| {row['divergence']:.4f} | {row['same_choice']:.1%} | {row['same_tokens']:.1%} "
            f"| {row['same_answers']:.0%} |"
        )
    return "\n".join(lines)


def write_table(path: Path, result: Mapping[str, Any]) -> None:
    """Replace what stands between the markers of a file.

    Raises:
        ConfigError: the file lacks them.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(
            f"{path}: expected the lines {BEGIN} and {END}, found {'one' if begin else 'none'} of "
            "them. Put them where the table belongs."
        )
    path.write_text(f"{before}{BEGIN}\n\n{table(result)}\n\n{END}{after}", encoding="utf-8")
