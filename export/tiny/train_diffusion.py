"""Train a tiny picture branch behind the frozen language model.

Run as ``python -m visionllm_edge.export.tiny.train_diffusion``; needs the VAE of
:mod:`~visionllm_edge.export.tiny.train_vae`. First the super link table and the adapter learn to
tell shapes and colours, then the UNet learns with them to take noise away. The editing branch
starts from the trained generation branch (``--start``). A run is measured in minutes, writes
``state.pt`` every two, goes on from there when it is started again, and prints every ten minutes
what the object decoder finds in pictures of captions that are never trained on.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.tiny.diffusion_data import EditBank, Prompts, SketchBank
from visionllm_edge.export.tiny.diffusion_judgement import judge
from visionllm_edge.export.tiny.diffusion_model import (
    BranchTrainer,
    cosine,
    load_state,
    official_state,
)
from visionllm_edge.export.tiny.frozen_model import frozen_model, frozen_tokenizer
from visionllm_edge.export.tiny.muon import Muon

_HEAD_WEIGHT = 0.1
_UNET = "branch.sd_unet."
_MATCH_WEIGHT = 10.0
_SAVE_S, _SHOW_S = 120, 30


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branch", choices=("gen", "edit"), default="gen")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="state.pt of the VAE")
    parser.add_argument(
        "--llm",
        type=Path,
        default=Path("export/tiny/checkpoint"),
        help="folder whose language model is behind it: a checkpoint, or a training run's",
    )
    parser.add_argument("--start", type=Path, help="state.pt of a branch to begin with")
    parser.add_argument(
        "--former-llm",
        type=Path,
        help="folder of the language model that --start was trained with: table and adapter learn "
        "to say behind the new one what they said behind it",
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--condition-minutes", type=float, default=4.0)
    parser.add_argument("--judge-minutes", type=float, default=10.0)
    parser.add_argument("--prompts", type=int, default=16, help="per step")
    parser.add_argument("--each", type=int, default=4, help="pictures per prompt")
    parser.add_argument("--bank", type=int, help="pictures or edits that are kept")
    parser.add_argument("--fresh", type=int, default=10, help="of them that a step replaces")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--words-rate", type=float, default=0.1, help="of table and adapter")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the mean weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    edits = args.branch == "edit"
    model = frozen_model(args.llm)
    former = None
    if args.former_llm:
        former = Prompts(frozen_model(args.former_llm), frozen_tokenizer(args.former_llm))
    prompts = Prompts(model, frozen_tokenizer(args.llm), former=former)
    saved = torch.load(args.vae, weights_only=True)
    trainer = BranchTrainer(model, edits=edits, vae=saved["mean"], scale=saved["scaling_factor"])
    run = _Run(trainer, args)
    rng = np.random.default_rng([args.seed, 31, run.step])
    torch.manual_seed(args.seed * 100_003 + run.step)
    bank: SketchBank | EditBank
    if edits:
        bank = EditBank(trainer.vae, prompts, rng, edits=args.bank or 1500)
    else:
        bank = SketchBank(trainer.vae, prompts, rng, pictures=args.bank or 16_000)
    print(f"{args.branch}: bank is drawn, at {run.used:.1f} min", flush=True)
    run.fit(model, prompts, bank)


class _Run:
    def __init__(self, trainer: BranchTrainer, args: argparse.Namespace) -> None:
        self.trainer, self.args = trainer, args
        named = {name: p for name, p in trainer.named_parameters() if p.requires_grad}
        inner = [name for name, p in named.items() if p.ndim > 1 and _inner(name)]
        words = [p for name, p in named.items() if not name.startswith(_UNET)]
        others = [p for n, p in named.items() if n.startswith(_UNET) and n not in inner]
        self.learnt = list(named.values())
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon([named[name] for name in inner], lr=args.lr),
            torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-2),
            torch.optim.AdamW(words, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-2),
        ]
        # What the words mean moves slowly once the UNet learns from it.
        self.rates = (1.0, 1.0, args.words_rate)
        self.used, self.step = 0.0, 0
        self.path: Path = args.out / "state.pt"
        if self.path.is_file():
            state = torch.load(self.path, weights_only=True)
            trainer.load_state_dict(state["trainer"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.mean = state["trainer_mean"]
            self.used, self.step = state["minutes"], state["step"]
        else:
            if args.start:
                trainer.start_from(load_state(args.start)["trainer_mean"])
            self.mean = {k: v.clone() for k, v in trainer.state_dict().items()}
        # Of a run that is started again it is no longer what was begun with, but close to it.
        self.former = copy.deepcopy(trainer).requires_grad_(False) if args.former_llm else None

    def fit(self, model: VisionLLM, prompts: Prompts, bank: SketchBank | EditBank) -> None:
        """Train until the minutes are used up."""
        args, trainer = self.args, self.trainer
        began, before = time.monotonic(), self.used
        saved = shown = began
        judged = self.used
        noted: dict[str, list[float]] = {}
        while self.used < args.minutes:
            reading = self.used < args.condition_minutes
            group = bank.group(
                args.prompts, args.each, fresh=0 if reading and not trainer.edits else args.fresh
            )
            condition = trainer.condition(model, group.past)
            loss, right = trainer.head_loss(condition, group.meanings)
            values = {"head": float(loss.detach()), "read": right}
            if group.former is not None and self.former and prompts.former:
                with torch.no_grad():
                    said = self.former.condition(prompts.former.model, group.former)
                match = F.mse_loss(condition, said) / said.var()
                loss = loss + _MATCH_WEIGHT * match
                values["match"] = float(match.detach())
            if not reading:
                noise, values["noise"] = trainer.noise_loss(condition, group)
                loss = noise + _HEAD_WEIGHT * loss
            self._update(loss)
            for name, value in values.items():
                noted.setdefault(name, []).append(value)
            now = time.monotonic()
            self.used = before + (now - began) / 60
            if now - shown > _SHOW_S:
                line = " ".join(f"{k} {sum(v) / len(v):.4f}" for k, v in noted.items())
                print(f"{self.used:5.1f} min step {self.step} | {line}", flush=True)
                noted, shown = {}, now
            done = self.used >= args.minutes
            if now - saved > _SAVE_S or done:
                self._save()
                saved = now
            if (self.used - judged > args.judge_minutes and not reading) or done:
                self._judge(model, prompts)
                judged = self.used

    def _update(self, loss: Tensor) -> None:
        rate = min(1.0, (self.step + 1) / self.args.warmup) * cosine(self.used / self.args.minutes)
        reading = self.used < self.args.condition_minutes
        for optimizer, own in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = self.args.lr * rate * (1.0 if reading else own)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learnt, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(self.args.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.trainer.state_dict().items():
                self.mean[name].lerp_(tensor, 1 - keep)

    def _judge(self, model: VisionLLM, prompts: Prompts) -> None:
        current = {k: v.clone() for k, v in self.trainer.state_dict().items()}
        self.trainer.load_state_dict(self.mean)
        print(f"{self.used:5.1f} min judged | {judge(self.trainer, model, prompts)}", flush=True)
        self.trainer.load_state_dict(current)

    def _save(self) -> None:
        temporary = self.path.with_suffix(".pt.new")
        torch.save(
            {
                "trainer": self.trainer.state_dict(),
                "trainer_mean": self.mean,
                "mean": official_state(self.mean, edits=self.trainer.edits),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaling_factor": self.trainer.scale,
                "minutes": self.used,
                "step": self.step,
            },
            temporary,
        )
        temporary.replace(self.path)


def _inner(name: str) -> bool:
    """Whether it is a weight inside the UNet: neither its ends nor what it makes of the time."""
    return name.startswith(_UNET) and not name.removeprefix(_UNET).startswith(("conv_", "time_"))


if __name__ == "__main__":
    main()
