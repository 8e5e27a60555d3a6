"""``visionllm-edge inspect``: what a bundle holds, from its manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.manifest import StageSpec
from visionllm_edge.runtime.memory import plan_memory
from visionllm_edge.runtime.pipelines.loading import LoadOptions

__all__ = ["inspect"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what a bundle holds: stages, ports, sizes, lowering and parity."""
    # Sizes and names are checked; hashing gigabytes is what `verify` is for.
    opened = Bundle.open(bundle, verify=False)
    if as_json:
        click.echo(json.dumps(opened.manifest.to_dict(), indent=1))
        return
    for line in _summary(opened):
        click.echo(line)


def _summary(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    target, llm, vision = manifest.target, manifest.model.llm, manifest.model.vision
    lines = [
        f"bundle      {manifest.name} ({manifest.family})",
        f"target      {target.name}: {target.backend}, {target.precision}",
        f"checkpoint  {manifest.checkpoint.fingerprint}",
        f"made by     {', '.join(f'{k} {v}' for k, v in manifest.created_by.items())}",
        f"size        {_size(bundle.size_bytes)} in {len(manifest.files)} files",
        f"llm         {llm.num_layers} layers, width {llm.hidden_size}, "
        f"{llm.num_kv_heads} KV heads of {llm.head_dim}, vocabulary {llm.vocab_size}, "
        f"context {llm.max_positions}",
        f"weights     {llm.precision}{f' in blocks of {llm.block_size}' * bool(llm.block_size)}, "
        f"cache {llm.cache}",
    ]
    if vision is not None:
        lines.append(
            f"vision      {vision.image_size} px tiles, at most {vision.max_tiles}, "
            f"{vision.tokens_per_tile} tokens each"
        )
    detector = manifest.model.detector
    if detector is not None:
        lines.append(
            f"detector    {detector.num_queries} queries, at most {detector.max_text_len} classes, "
            f"image {detector.shortest_edge}..{detector.longest_edge} px, "
            f"buckets {', '.join(_bucket(b) for b in detector.buckets)}"
        )
    if target.backend == "onnxruntime":
        plan = plan_memory(bundle, context=llm.max_positions, buckets=LoadOptions().buckets)
        lines.append(f"memory      {plan}")
    links = [f"{' '.join(link.tokens)} +{link.rows}" for link in manifest.model.superlink.values()]
    lines.append(f"super-link  {', '.join(links) or 'none'}")
    for name, stage in manifest.stages.items():
        lines += ["", *_stage_lines(bundle, name, stage)]
    return lines


def _stage_lines(bundle: Bundle, name: str, stage: StageSpec) -> list[str]:
    lines = [f"stage {name}"]
    lines += [f"  in        {text}" for text in _port_texts(stage, "in")]
    lines += [f"  out       {text}" for text in _port_texts(stage, "out")]
    for variant in stage.variants:
        size = _size(bundle.manifest.files[variant.model].size)
        bucket = "" if variant.bucket is None else f"  bucket {_bucket(variant.bucket)}"
        lines.append(f"  graph     {variant.model}  {size}{bucket}")
    weights = f"stages/{name}.weights"
    if weights in bundle.manifest.files:
        lines.append(f"  weights   {weights}  {_size(bundle.manifest.files[weights].size)}")
    lines += [f"  lowering  {text}" for text in _lowering_texts(stage.lowering)]
    lines += [f"  parity    {text}" for text in _parity_texts(stage.parity)]
    return lines


def _lowering_texts(report: Mapping[str, object]) -> list[str]:
    """One line per graph: how many nodes of an operator got which form, and why."""
    texts: list[str] = []
    for graph, nodes in report.items():
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            texts.append(f"{graph}: {_short(nodes)}")
            continue
        forms = Counter(
            f"{node.get('op')} as {node.get('form')} ({node.get('reason')})" for node in nodes
        )
        counted = [f"{count} {form}" for form, count in forms.items()]
        texts.append(f"{graph}: {', '.join(counted) or 'standard operators only'}")
    return texts or ["not recorded"]


def _parity_texts(report: Mapping[str, object]) -> list[str]:
    """The rule and the worst output; the runs themselves are in the manifest."""
    texts = [f"{key}: {_short(report[key])}" for key in report if key not in ("worst", "runs")]
    worst, runs = report.get("worst"), report.get("runs")
    if isinstance(worst, dict):
        numbers = (
            f"{key} {value:.2e}" if isinstance(value, float) else f"{key} {_short(value)}"
            for key, value in worst.items()
            if key != "name"
        )
        texts.append(f"worst: {worst.get('name')}, {', '.join(numbers)}")
    if isinstance(runs, list):
        texts.append(f"runs: {len(runs)}")
    return texts or ["not recorded"]


def _port_texts(stage: StageSpec, side: str) -> list[str]:
    """Ports as text; of the cache, whose ports come by the dozen, the first and a count."""
    ports = stage.inputs if side == "in" else stage.outputs
    prefix = "past_key_values." if side == "in" else "present."
    cache = [port for port in ports if port.name.startswith(prefix)]
    texts = [str(port) for port in ports if port not in cache]
    if cache:
        texts.append(f"{cache[0]}" + (f"  and {len(cache) - 1} alike" if cache[1:] else ""))
    return texts


def _bucket(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _size(size_bytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"
