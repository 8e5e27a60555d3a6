"""Train the tiny checkpoint from nothing on the CPU.

Run as ``python -m visionllm_edge.export.tiny.train``. Every picture of every step is new.
``--part`` says what learns: the vision encoder alone, everything together, or the language side
(which also learns all that is said beyond detection) and the object decoder apart from each other.
A run ends with an average of its weights over the last steps, and can be continued.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.config import VisionLLMConfig, config_from_dict
from visionllm_edge.export.tiny.architecture import tiny_config
from visionllm_edge.export.tiny.batches import Batch, Mix, batches
from visionllm_edge.export.tiny.check import held_out
from visionllm_edge.export.tiny.initial import initialise, initialise_tables
from visionllm_edge.export.tiny.trainer import Trainer
from visionllm_edge.export.tiny.training_folder import load_tokenizer, take_tokenizer

_WEIGHTS = {
    "class": 0.6, "l1": 1.5, "giou": 0.6, "dice": 0.6, "bce": 0.6,
    "enc_class": 0.6, "enc_l1": 1.5, "enc_giou": 0.6,
    "detect": 0.7, "caption": 2.0, "vqa": 2.0, "region": 2.0, "grounded": 1.5, "route": 0.7,
    "marked": 0.5, "marked_place": 2.0, "link": 3.0, "text": 1.5, "place": 4.0,
    "pointed": 2.0, "pointed_name": 1.5,
    "heard_pose": 0.2, "heard_gen": 0.4, "heard_edit": 0.4,
    "patch": 5.0, "cell": 5.0, "name": 0.5, "fused_name": 0.5,
}  # fmt: skip

_BASIC, _NAMES_ONLY = Mix(), Mix(questions=0, captions=False)
_MIXES = {
    "vision": _BASIC,
    "joint": _BASIC,
    "language": Mix(questions=2, regions=3, rare=(0.2, 1.5, 0.3, 0.12, 0.12, 0.15), length=400),
    "detector": Mix(questions=0, captions=False, conversations=0.0, pointing=0.3, phrases=0.1),
}
"""What is said in each part."""


class _Stream(IterableDataset[Batch]):
    def __init__(
        self, config: VisionLLMConfig, folder: Path, *, batch: int, seed: int, mix: Mix
    ) -> None:
        self.config, self.folder = config, folder
        self.batch, self.seed, self.mix = batch, seed, mix

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        tokenizer = load_tokenizer(self.folder)
        return batches(self.config, tokenizer, batch=self.batch, seed=self.seed, mix=self.mix)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--questions", type=int, help="per picture; default: the part's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that make pictures")
    parser.add_argument("--part", choices=tuple(_MIXES), default="joint")
    parser.add_argument("--start", type=Path, help="state.pt or checkpoint folder to go on from")
    parser.add_argument("--link-to", type=Path, help="whose super link to keep; default: start")
    parser.add_argument("--go-on", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--new-tables", action="store_true", help="the other decoders' tables begin as this one's"
    )
    parser.add_argument("--warmup", type=int, default=150, help="steps")
    parser.add_argument("--average", type=float, default=0.997, help="decay of the mean weights")
    parser.add_argument("--weight", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--check-every", type=float, default=0.0, help="minutes; 0 is never")
    args = parser.parse_args()
    folder: Path = args.out
    vocab = take_tokenizer(folder, folder / "state.pt" if args.go_on else args.start)
    data = tiny_config(vocab)
    (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    config = config_from_dict(data, name="tiny")
    weights = dict(_WEIGHTS)
    for text in args.weight:
        name, _, value = text.partition("=")
        weights[name] = float(value)
    mix = _MIXES[args.part]
    if args.questions is not None:
        mix = replace(mix, questions=args.questions)
    stream = _Stream(config, folder, batch=args.batch, seed=args.seed, mix=mix)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    trainer = Trainer(config)
    initialise(trainer.model, args.seed)
    if args.start:
        _take(trainer, args.start)
        kept = copy.deepcopy(trainer)
        if args.link_to:
            _take(kept, args.link_to)
        trainer.start.append(kept.model.eval().requires_grad_(False))
    if args.part == "language":
        if not trainer.start:
            parser.error("--part language needs --start: whose super link to keep")
        if args.new_tables:
            initialise_tables(trainer.model, args.seed)
        if not args.go_on:
            basic = _Stream(config, folder, batch=16, seed=args.seed + 1, mix=_NAMES_ONLY)
            trainer.learn_texts(list(itertools.islice(basic, 40)))
    fit(trainer, stream, weights, args)


def _take(trainer: Trainer, start: Path) -> None:
    """Take weights from a ``state.pt``, or from a checkpoint folder (which has no extra heads).

    What the start does not have keeps its initial weights.
    """
    if start.is_dir():
        state = load_model(Checkpoint(start)).state_dict()
        missing, extra = trainer.model.load_state_dict(state, strict=False)
    else:
        state = torch.load(start, weights_only=True)["trainer"]
        missing, extra = trainer.load_state_dict(state, strict=False)
        missing = [name for name in missing if name.startswith("model.")]
    lacking = {name.removeprefix("model.").partition(".")[0] for name in missing}
    assert lacking <= {"region_encoder"} and not extra, f"'{start}' lacks {lacking}, has {extra}"


def fit(
    trainer: Trainer, stream: _Stream, weights: dict[str, float], args: argparse.Namespace
) -> None:
    """Train for ``args.minutes`` of wall clock and write ``state.pt``."""
    decay = [p for p in trainer.parameters() if p.ndim > 1]
    plain = [p for p in trainer.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    mean = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    before, first = 0.0, 0
    if args.go_on:
        kept = torch.load(args.out / "state.pt", weights_only=True)
        trainer.load_state_dict(kept["trainer"])
        optimizer.load_state_dict(kept["optimizer"])
        mean, before, first = kept["mean"], kept["minutes"], kept["step"]
        stream.seed += 1000 + first
    parallel = {"num_workers": args.workers, "prefetch_factor": 4} if args.workers else {}
    loader: Iterator[Batch] = iter(DataLoader(stream, batch_size=None, **parallel))
    began, saved, shown, checked = (time.monotonic() for _ in range(4))
    noted: dict[str, list[float]] = {}
    seen = 0
    for step, batch in enumerate(loader, first):
        elapsed = before + (time.monotonic() - began) / 60
        done = elapsed / args.minutes
        if done >= 1:
            break
        rate = min(1.0, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * max(rate, 0.002)
        losses = trainer.losses(batch, args.part, step)
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(trainer.parameters(), 2.0))
        if not math.isfinite(norm):
            print(f"step {step}: gradient is not finite, step left out", file=sys.stderr)
            continue
        optimizer.step()
        keep = min(args.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in trainer.model.state_dict().items():
                mean[key].lerp_(value, 1 - keep)
        seen += len(batch.ids)
        for name, value in losses.items():
            noted.setdefault(name, []).append(float(value.detach()))
        now = time.monotonic()
        if now - shown > 30:
            line = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in sorted(noted.items()))
            print(f"{elapsed:5.1f} min step {step} images {seen} | {line}", flush=True)
            noted, shown = {}, now
        if now - saved > 120:
            _save(trainer, optimizer, mean, args.out, elapsed, step)
            saved = now
        if args.check_every and now - checked > 60 * args.check_every:
            _check(trainer, mean, args.out, args.part)
            checked = time.monotonic()
    _save(trainer, optimizer, mean, args.out, args.minutes, step)
    if args.check_every:
        _check(trainer, mean, args.out, args.part)


def _check(trainer: Trainer, mean: dict[str, Tensor], folder: Path, part: str) -> None:
    """Print how good the averaged weights are on held-out pictures."""
    model = copy.deepcopy(trainer.model).eval()
    model.load_state_dict(mean)
    said, found = (0, 6) if part == "detector" else (6, 3)
    values = held_out(model, load_tokenizer(folder), said=said, found=found)
    print("held out: " + " ".join(f"{k} {v:.3f}" for k, v in values.items()), flush=True)


def _save(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    mean: dict[str, Tensor],
    folder: Path,
    minutes: float,
    step: int,
) -> None:
    temporary = folder / "state.pt.new"
    state = {
        "trainer": trainer.state_dict(),
        "mean": mean,
        "optimizer": optimizer.state_dict(),
        "minutes": minutes,
        "step": step,
    }
    torch.save(state, temporary)
    temporary.replace(folder / "state.pt")


if __name__ == "__main__":
    main()
