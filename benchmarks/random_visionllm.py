"""A VisionLLM v2 of random weights (``python -m visionllm_edge.benchmarks.random_visionllm``).

For what needs the size of the released checkpoint and not its knowledge: names, shapes, types,
memory and time of a compile. The folder is laid out as the released one: ``config.json``, two
``.bin`` shards with their index, a SentencePiece tokenizer. Weights are bfloat16, the detector's
norms float32, Swin's position indices int64; tied tensors stand under all their names.

Files stay small because equal storage is written once: the layers of the language model after the
first repeat it, and the editing branch repeats the generating one where shapes agree. With all 32
layers and every part the folder has all 4,742 keys of 18.76 GB in under 5 GB.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from visionllm_edge.benchmarks.official_config import PARTS, SIDE_FILES, official_config
from visionllm_edge.benchmarks.random_tokenizer import write_random_tokenizer
from visionllm_edge.runtime.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    import torch

__all__ = ["SHARDS", "random_state", "write_random_visionllm"]

SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")

Progress = Callable[[str], None]
Shapes = Mapping[str, tuple[int, ...]]
State = dict[str, "torch.Tensor"]

_INDEX = "pytorch_model.bin.index.json"
_FIRST_SHARD = ("vis_encoder.", "vl_bridge.", "llm.")
_SPARE_BYTES = 1 << 30
_LAYER = re.compile(r"^llm\.model\.layers\.\d+\.")
# Tables, whose rows are no products of anything.
_TABLES = ("embed", "queries", "hw.weight", "hw_append.weight")
# Layers that write to a residual stream.
_RESIDUAL = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "mlp.fc2.weight")


def write_random_visionllm(
    folder: Path,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> None:
    """Write the folder.

    Args:
        folder: made if missing; must hold no other model.
        config: parsed ``config.json``, such as `official_config` gives.
        seed: same seed, same weights.
        progress: gets a line per shard.

    Raises:
        ConfigError: the folder holds another model, the disk is too small, or a configuration that
            the compiler does not support.
    """
    import torch

    from visionllm_edge.export.config import config_from_dict
    from visionllm_edge.export.official_layout import official_shapes

    parsed = config_from_dict(config, name=folder.name)
    text = json.dumps(config, indent=2) + "\n"
    path = folder / "config.json"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{folder}: expected an empty folder or this configuration, found another model's "
            "config.json. Name another folder."
        )
    shapes = official_shapes(parsed)
    halves = [
        {name: shape for name, shape in shapes.items() if name.startswith(_FIRST_SHARD) == first}
        for first in (True, False)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _require_disk(folder, _stored_bytes(shapes))
    path.write_text(text, encoding="utf-8")
    write_random_tokenizer(folder, vocab_size=parsed.llm.vocab_size)
    for name, content in SIDE_FILES.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    total = 0
    for file, half in zip(SHARDS, halves, strict=True):
        progress(f"{file}: {len(half)} tensors, {_stored_bytes(half) / 1e9:.2f} GB")
        state = random_state(half, seed=seed)
        total += sum(tensor.nbytes for tensor in state.values())
        torch.save(state, folder / file)
        del state  # one shard in memory at a time
    index = {
        "metadata": {"total_size": total},
        "weight_map": {
            name: file for file, half in zip(SHARDS, halves, strict=True) for name in sorted(half)
        },
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def random_state(shapes: Shapes, *, seed: int = 0) -> State:
    """Random tensors by name; what is tied or repeated is one tensor.

    Args:
        shapes: in the official layout.
        seed: same seed, same weights.
    """
    layers = len({match[0] for name in shapes if (match := _LAYER.match(name))})
    made: State = {}
    for name, shape in shapes.items():
        source = _source(name, shape, shapes)
        if source not in made:
            made[source] = _values(name, shape, layers, (seed << 20) + len(made))
    return {name: made[_source(name, shape, shapes)] for name, shape in shapes.items()}


def _source(name: str, shape: tuple[int, ...], shapes: Shapes) -> str:
    """The name whose tensor this one is."""
    from visionllm_edge.export.official_layout import canonical_name

    if _LAYER.match(name):
        return _LAYER.sub("llm.model.layers.0.", name)
    if name.startswith("ip2p."):
        twin = f"sd.{name.removeprefix('ip2p.')}"
        return twin if shapes.get(twin) == shape else name
    return canonical_name(name)


def _values(name: str, shape: tuple[int, ...], layers: int, seed: int) -> torch.Tensor:
    import torch

    if name.endswith("relative_position_index"):
        return torch.zeros(shape, dtype=torch.int64)
    norm = len(shape) == 1 and name.endswith(".weight")
    values = torch.ones(shape)
    if not norm:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(shape, generator=generator).mul_(_deviation(name, shape, layers))
    detector_norm = name.startswith("gdino.") and "norm" in name
    return values.to(torch.float32 if detector_norm else torch.bfloat16)


def _deviation(name: str, shape: tuple[int, ...], layers: int) -> float:
    """Of the normal distribution, so that activations keep the size of a trained model's."""
    if "sampling_offsets" in name:
        return 2.0 if name.endswith("bias") else 0.01
    if len(shape) == 1 or "bias_table" in name:
        return 0.02
    if any(word in name for word in _TABLES) and len(shape) == 2 and ".layers." not in name:
        return 0.1
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    if name.endswith(_RESIDUAL):
        deviation /= math.sqrt(2 * (layers if name.startswith("llm.") else 12))
    return deviation


def _stored_bytes(shapes: Shapes) -> int:
    """Of the distinct tensors; two bytes a weight."""
    distinct = {_source(name, shape, shapes): shape for name, shape in shapes.items()}
    return sum(2 * math.prod(shape) for shape in distinct.values())


def _require_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise ConfigError(
            f"{folder}: expected {needed / 1e9:.1f} GB of free disk and 1 GB to spare, found "
            f"{free / 1e9:.1f} GB. Free some, or name a folder on another disk."
        )


def _parts(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name for name in value.split(",") if name)
    wrong = [name for name in names if name not in PARTS]
    if wrong:
        raise click.BadParameter(f"expected names out of {', '.join(PARTS)}, got {wrong[0]!r}.")
    return names


def _sizes(_: click.Context, __: click.Parameter, value: str) -> tuple[tuple[int, int], ...]:
    sizes = []
    for text in filter(None, value.split(",")):
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if not match:
            raise click.BadParameter(f"expected sizes such as 800x1088, got {text!r}.")
        sizes.append((int(match[1]), int(match[2])))
    return tuple(sizes)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--llm-layers",
    type=click.IntRange(1, 32),
    default=32,
    show_default=True,
    help="Layers of the language model.",
)
@click.option("--without", default="", callback=_parts, help=f"Parts out of {','.join(PARTS)}.")
@click.option(
    "--buckets",
    default="",
    callback=_sizes,
    help="Picture sizes of the perception decoders, such as 800x1088; five by default.",
)
@click.option("--seed", type=click.IntRange(0, 1000), default=0, help="Of the weights.")
def main(
    folder: Path,
    llm_layers: int,
    without: tuple[str, ...],
    buckets: tuple[tuple[int, int], ...],
    seed: int,
) -> None:
    """Write a VisionLLM v2 of random weights and the released sizes into FOLDER."""
    try:
        write_random_visionllm(
            folder,
            official_config(llm_layers=llm_layers, without=without, buckets=buckets),
            seed=seed,
            progress=lambda text: click.echo(text, err=True),
        )
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(folder)


if __name__ == "__main__":
    main()
