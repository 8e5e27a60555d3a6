"""A picture and a question, answered: the whole chain at real size.

Run as ``python -m visionllm_edge.benchmarks.llm_end_to_end``. ``checkpoint`` writes a VisionLLM v2
of random weights: CLIP ViT-L/14-336 and its bridge at the released size, a language model of
TinyLlama's, the shipped tiny checkpoint's small detector and tokenizer. ``time`` asks bundles
compiled from it, in turns: a new picture each time, a prompt of 640 positions (576 of them the
picture), 64 generated tokens.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import click
import numpy as np

from visionllm_edge.benchmarks.bandwidth import measure_read_bandwidth
from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.random_llm import SHAPES, random_tensors
from visionllm_edge.benchmarks.real_size import released_config
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import EdgeError, InputError
from visionllm_edge.runtime.events import Event, TokenEvent
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.loading import LoadOptions, load_pipeline
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Turn

__all__ = ["time_answers", "write_checkpoint"]

Note = Callable[[str], None]

_PACKAGES = ("visionllm-edge", "onnxruntime", "numpy")
_SHAPE = "tinyllama-1.1b"
_SIDE_PX = 336
_PROMPT = 640
_TOKENS = 64
_TOKENIZER = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "generation_config.json",
)


def write_checkpoint(folder: Path, *, shape: str = _SHAPE, seed: int = 0) -> None:
    """Write the random checkpoint: 3 GB for TinyLlama's shape, all of it in memory at a time.

    Args:
        folder: made if missing; files of the same names are replaced.
        shape: of the language model, from `random_llm.SHAPES`.
        seed: of the weights.
    """
    import torch
    from safetensors.torch import save_file

    from visionllm_edge.export.components.model import VisionLLM as TorchVisionLLM
    from visionllm_edge.export.config import config_from_dict

    folder.mkdir(parents=True, exist_ok=True)
    config = _config(shape)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    with resources.as_file(resources.files("visionllm_edge.export.tiny") / "checkpoint") as tiny:
        for name in _TOKENIZER:
            shutil.copyfile(tiny / name, folder / name)
    # One layer is enough of a language model to get all other parts with their first values.
    small = json.loads(json.dumps(config))
    small["llm_config"]["num_hidden_layers"] = 1
    torch.manual_seed(seed)
    model = TorchVisionLLM(config_from_dict(small, name="random"))
    tensors = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("llm.") and torch.is_floating_point(tensor)
    }
    del model
    tensors |= {f"llm.{name}": t for name, t in random_tensors(SHAPES[shape], seed=seed)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _config(shape: str) -> dict[str, Any]:
    sizes = SHAPES[shape]
    with resources.as_file(resources.files("visionllm_edge.export.tiny") / "checkpoint") as tiny:
        config: dict[str, Any] = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    for part in ("use_region_encoder", "use_unipose", "use_sd", "use_ip2p"):
        config[part] = False  # they take no part in an answer in words
    config["vis_encoder_config"] = released_config()["vis_encoder_config"]
    config["llm_config"] |= {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "max_position_embeddings": sizes.max_position_embeddings,
    }
    config["gdino_config"]["l_hidden_size"] = sizes.hidden_size
    return config


def time_answers(
    paths: Sequence[Path],
    *,
    rounds: int,
    threads: int,
    prompt: int = _PROMPT,
    tokens: int = _TOKENS,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Ask every bundle once per round, in turns.

    Returns:
        Plain JSON types: by bundle the medians of the whole answer and its parts, in seconds.

    Raises:
        EdgeError: a bundle does not load, or has no room for the prompt and the answer.
    """
    bundles = {path.name: Bundle.open(path, verify=False) for path in paths}
    pipelines = {
        name: load_pipeline(bundle, LoadOptions(threads=threads, context=prompt + tokens + 8))
        for name, bundle in bundles.items()
    }
    questions = {name: _question(pipeline, prompt) for name, pipeline in pipelines.items()}
    rng = np.random.default_rng(0)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        image = rng.integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8)
        for name, pipeline in pipelines.items():
            run = _answer(pipeline, image, questions[name], prompt, tokens)
            # The first round warms up: stages are loaded, buffers get their size.
            if number:
                runs[name].append(run)
                parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in run.items())
                note(f"round {number}/{rounds} {name}: {parts} s")
    return {
        "environment": describe_environment(_PACKAGES, threads=threads),
        "bandwidth_gb_per_s": measure_read_bandwidth(threads).bytes_per_s / 1e9,
        "prompt": prompt,
        "tokens": tokens,
        "rounds": rounds,
        "bundles": {
            name: {
                "precision": bundles[name].manifest.model.llm.precision,
                "block_size": bundles[name].manifest.model.llm.block_size,
                **{part: statistics.median(run[part] for run in ones) for part in ones[0]},
            }
            for name, ones in runs.items()
        },
    }


def _answer(
    pipeline: VisionLLMv2, image: np.ndarray, question: str, prompt: int, tokens: int
) -> dict[str, float]:
    """One answer by the public call, and when its parts were done."""
    stamps: list[float] = []

    def stamp(event: Event) -> None:
        if isinstance(event, TokenEvent):
            stamps.append(time.perf_counter())

    begin = time.perf_counter()
    pipeline.prompt((Turn(question),), pipeline.open(image))  # the picture's rows are kept
    seen = time.perf_counter()
    config = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens)
    VisionLLM(pipeline).vqa(image, question, short=False, config=config, stream=stamp)
    end = time.perf_counter()
    assert len(stamps) == tokens, f"{len(stamps)} events for {tokens} tokens"
    return {
        "answer_s": end - begin,
        "picture_s": seen - begin,
        "first_token_s": stamps[0] - seen,
        "other_tokens_s": end - stamps[0],
    }


def _question(pipeline: VisionLLMv2, prompt: int) -> str:
    """A question that fills the prompt to the position.

    Raises:
        InputError: no number of words does.
    """
    blank = np.zeros((_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8)
    question = "what is this"
    while (length := len(pipeline.prompt((Turn(question),), pipeline.open(blank)))) < prompt:
        question += " a" if length < prompt - 1 else "s"
    if length != prompt:
        raise InputError(
            f"end to end: expected a question that makes a prompt of {prompt} positions, the "
            f"shortest one makes {length}. Ask for a longer prompt."
        )
    return question


@click.group()
def main() -> None:
    """Time the whole chain at real size."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--shape", type=click.Choice(list(SHAPES)), default=_SHAPE, show_default=True)
@click.option("--seed", type=click.IntRange(0, 1000), default=0)
def checkpoint(folder: Path, shape: str, seed: int) -> None:
    """Write a VisionLLM v2 of random weights into FOLDER."""
    write_checkpoint(folder, shape=shape, seed=seed)
    click.echo(folder)


@main.command(name="time")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--prompt", type=click.IntRange(1), default=_PROMPT, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=_TOKENS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
def time_(
    bundles: tuple[Path, ...], rounds: int, threads: int, prompt: int, tokens: int, out: Path | None
) -> None:
    """Ask BUNDLES about new pictures, in turns."""
    try:
        result = time_answers(
            bundles,
            rounds=rounds,
            threads=threads,
            prompt=prompt,
            tokens=tokens,
            note=lambda text: click.echo(text, err=True),
        )
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    for name, row in result["bundles"].items():
        click.echo(
            f"{name}: {row['answer_s']:.2f} s = picture {row['picture_s']:.2f} + first token "
            f"{row['first_token_s']:.2f} + {tokens - 1} tokens {row['other_tokens_s']:.2f}"
        )
    if out is not None:
        write_report(out, result)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
