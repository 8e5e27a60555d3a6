"""Time one language model in this process: the same steps for every runtime.

Imports the standard library only, because it runs in whatever environment the runtime lives in.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Engine", "Workload", "add_workload_options", "measure", "report", "workload_arguments"]


class Engine(Protocol):
    """A loaded model with one context. Tokens are chosen greedily, as part of the time."""

    def prefill(self, tokens: Sequence[int]) -> int:
        """Forget the context, take these tokens, return the most likely next one."""

    def decode(self, token: int) -> int:
        """Append one token, return the most likely next one."""


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        prompt: tokens of the prompt whose prefill is timed.
        contexts: decoding is timed behind as many tokens as each of these.
        steps: timed tokens per context.
        prefills: timed prompts; each is another one.
        vocabulary: tokens are drawn below this.
        threads: of the runtime; 0 leaves it to the runtime (ours only).
    """

    prompt: int = 512
    contexts: tuple[int, ...] = (64, 1024)
    steps: int = 24
    prefills: int = 2
    vocabulary: int = 32000
    threads: int = 2


def workload_arguments(workload: Workload) -> list[str]:
    """The workload as options of a process."""
    return [
        f"--prompt={workload.prompt}",
        f"--contexts={','.join(map(str, workload.contexts))}",
        f"--steps={workload.steps}",
        f"--prefills={workload.prefills}",
        f"--vocabulary={workload.vocabulary}",
        f"--threads={workload.threads}",
    ]


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """The other end of `workload_arguments`."""
    for name in ("prompt", "steps", "prefills", "vocabulary", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--contexts", required=True)


def measure(engine: Engine, workload: Workload) -> dict[str, object]:
    """Warm up, then time prompts and single tokens.

    Returns:
        Tokens per second: ``prefill``, the median prompt's, and ``decode`` by context, the median
        step's; ``first_token_s`` after the prompt.
    """
    rng = random.Random(workload.prompt)  # every runtime gets the same tokens

    def tokens(count: int) -> list[int]:
        return [rng.randrange(3, workload.vocabulary) for _ in range(count)]

    # A whole prompt, so that buffers have their size and their pages.
    token = engine.prefill(tokens(workload.prompt))
    for _ in range(3):
        token = engine.decode(token)
    prompts = [_seconds(engine.prefill, tokens(workload.prompt)) for _ in range(workload.prefills)]
    decode = {}
    for context in workload.contexts:
        token = engine.prefill(tokens(context))
        token = engine.decode(token)
        steps = []
        for _ in range(workload.steps):
            begin = time.perf_counter()
            token = engine.decode(token)
            steps.append(time.perf_counter() - begin)
        decode[str(context)] = 1 / statistics.median(steps)
    first = statistics.median(prompts)
    return {"prefill": workload.prompt / first, "decode": decode, "first_token_s": first}


def report(
    open_engine: Callable[[str, Workload], tuple[Engine, dict[str, object]]], description: str
) -> None:
    """The process of one runtime: options in, one JSON object on the last line of stdout.

    Args:
        open_engine: loads a model; returns it, and what the result shall also say.
        description: for the help text.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    add_workload_options(parser)
    options = vars(parser.parse_args())
    model = options.pop("model")
    contexts = tuple(map(int, options.pop("contexts").split(",")))
    workload = Workload(contexts=contexts, **options)
    begin = time.perf_counter()
    engine, facts = open_engine(model, workload)
    load_s = time.perf_counter() - begin
    print(json.dumps({**measure(engine, workload), "load_s": load_s, **facts}), flush=True)


def _seconds(run: Callable[[Sequence[int]], object], tokens: Sequence[int]) -> float:
    begin = time.perf_counter()
    run(tokens)
    return time.perf_counter() - begin
