"""Train the tiny checkpoint from nothing on the CPU.

Run as ``python -m visionllm_edge.export.tiny.train``. Every picture of every step is new.
``--part`` says what learns: the vision encoder alone, everything together, or the language side and
the object decoder apart from each other (two processes, one core each). Throw-away heads help:
shape and colour per patch for both image towers, shape and colour per class name for the super
link. A run ends with an average of its weights over the last steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, IterableDataset

from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig, config_from_dict
from visionllm_edge.export.tiny.architecture import tiny_config
from visionllm_edge.export.tiny.batches import KINDS, Batch, batches
from visionllm_edge.export.tiny.initial import initialise
from visionllm_edge.export.tiny.losses import decoder_losses, proposal_losses
from visionllm_edge.export.tiny.vocabulary import SPECIAL_TOKENS, write_tokenizer
from visionllm_edge.runtime.tokenizer import Tokenizer

_WEIGHTS = {
    "class": 0.6, "l1": 1.5, "giou": 0.6, "dice": 0.6, "bce": 0.6,
    "enc_class": 0.6, "enc_l1": 1.5, "enc_giou": 0.6,
    "detect": 0.7, "caption": 2.0, "vqa": 2.0, "link": 3.0,
    "patch": 5.0, "cell": 5.0, "name": 0.5, "fused_name": 0.5,
}  # fmt: skip
_LINK_GRADIENT = 0.05
"""Share of the detector's gradient that reaches the language model through the super link."""


class _Stream(IterableDataset[Batch]):
    def __init__(
        self, config: VisionLLMConfig, folder: Path, *, batch: int, seed: int, questions: int
    ) -> None:
        self.config, self.folder = config, folder
        self.batch, self.seed, self.questions = batch, seed, questions

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        return batches(
            self.config,
            load_tokenizer(self.folder),
            batch=self.batch,
            seed=self.seed,
            questions=self.questions,
        )


class Trainer(nn.Module):
    """The model with the throw-away heads."""

    def __init__(self, config: VisionLLMConfig, image_start: int) -> None:
        """Fresh weights; ``image_start`` is where the image tokens stand in every row."""
        super().__init__()
        self.model = VisionLLM(config)
        self.image_start = image_start
        # In a list, so that it is no part of this module: whose super link a language run keeps.
        self.start: list[VisionLLM] = []
        self.patch_head = nn.Linear(config.vision.hidden_size, 12)
        self.cell_head = nn.Conv2d(config.detector.backbone.channels[1], 12, 1)
        # 6 shapes, then no colour or one of 6: for the super link's text, before and after fusion.
        dim = config.detector.d_model
        self.name_heads = nn.ModuleList([nn.Linear(dim, 13), nn.Linear(dim, 13)])

    def losses(self, batch: Batch, part: str, step: int) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            batch: the data.
            part: ``vision``, the vision encoder alone; ``language``, bridge and language model,
                with the super link held where the start was; ``detector``, the object decoder
                alone; ``joint``, everything.
            step: the super link is held on every third step only, which is enough.
        """
        model = self.model
        if part == "detector":
            with torch.no_grad():
                states = self._hidden(model, batch, model.image_tokens(batch.tiles))[1]
            return self._detector(batch, states)
        with torch.set_grad_enabled(part != "language"):
            patches = model.vis_encoder(batch.tiles)
        out = {} if part == "language" else {"patch": self._patch_loss(patches, batch)}
        if part == "vision":
            return out
        hidden, states = self._hidden(model, batch, model.vl_bridge(patches))
        logits = model.llm.lm_head(hidden[batch.targets >= 0])
        target, kind = batch.targets[batch.targets >= 0], batch.kind[batch.targets >= 0]
        nll = F.cross_entropy(logits, target, reduction="none")
        for i, name in enumerate(KINDS):
            out[name] = nll[kind == i].sum() / max(1, int((kind == i).sum()))
        if part == "joint":
            text = model.gdino.patch2query(states).mean(dim=2)
            out["name"] = self._name_loss(0, text, batch)
            return out | self._detector(batch, states)
        if step % 3 == 0:
            with torch.no_grad():
                start = self.start[0]
                before = self._hidden(start, batch, start.image_tokens(batch.tiles))[1]
            out["link"] = F.mse_loss(states, before) / before.var()
        return out

    def _hidden(self, model: VisionLLM, batch: Batch, image: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [B,L,D] of whole rows, and those of the super link [B,T,N,D]."""
        embeds = model.llm.model.embed_tokens(batch.ids)
        at, count = self.image_start, model.config.vision.tokens_per_tile
        embeds = torch.cat([embeds[:, :at], image, embeds[:, at + count :]], dim=1)
        rows = torch.arange(len(embeds))[:, None, None]
        table = model.emb_embeddings_det.weight.expand(*batch.groups.shape, -1)
        embeds = embeds.index_put((rows, batch.groups), table)
        hidden = model.llm.teacher_forced(embeds, mask=batch.mask, positions=batch.positions)
        return hidden, hidden[rows, batch.groups]

    def _patch_loss(self, patches: Tensor, batch: Batch) -> Tensor:
        # Few patches show anything: without the weight, "nothing" is the best answer for long.
        return F.binary_cross_entropy_with_logits(
            self.patch_head(patches), batch.patch_labels, pos_weight=torch.tensor(4.0)
        )

    def _detector(self, batch: Batch, states: Tensor) -> dict[str, Tensor]:
        gdino, geometry = self.model.gdino, Geometry(*batch.size)
        size = geometry.full_size()
        map1, map2, map3, map4 = gdino.backbone_maps(batch.pixels)
        # The detector's many losses would drown what the language model learns from its own.
        damped = states.detach().lerp(states, _LINK_GRADIENT)
        memory, text = gdino.encode(map2, map3, map4, size, damped, geometry)
        level = gdino.levels(size, geometry)
        proposals = gdino.propose(memory, text, level)
        outputs = gdino.decode_layers(proposals, memory, text, level, geometry, every=True)
        pixels = gdino.mask_pixels(map1, memory, geometry)
        out = decoder_losses(outputs, batch.truth, pixels, gdino.mask_embed[0])
        out |= proposal_losses(proposals, batch.truth, geometry)
        out["fused_name"] = self._name_loss(1, text, batch)
        out["cell"] = F.binary_cross_entropy_with_logits(self.cell_head(map2), batch.cell_labels)
        return out

    def _name_loss(self, head: int, text: Tensor, batch: Batch) -> Tensor:
        """Which shape and colour a text feature means; without it all texts look alike for long."""
        centred = F.layer_norm(text, text.shape[-1:])
        logits = self.name_heads[head](centred).flatten(0, 1)
        shape, color = batch.names.flatten(0, 1).unbind(-1)
        return F.cross_entropy(logits[:, :6], shape) + F.cross_entropy(logits[:, 6:], color)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that :func:`write_tokenizer` wrote."""
    controls = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    assert list(controls) == list(SPECIAL_TOKENS)
    return Tokenizer.from_file(
        folder / "tokenizer.json", controls=controls, bos=1, eos=2, space_after_control=False
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--questions", type=int, default=3, help="per picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--part", choices=("joint", "vision", "language", "detector"), default="joint"
    )
    parser.add_argument("--start", type=Path, help="state.pt or checkpoint folder to go on from")
    parser.add_argument("--link-to", type=Path, help="whose super link to keep; default: start")
    parser.add_argument("--warmup", type=int, default=150, help="steps")
    parser.add_argument("--average", type=float, default=0.997, help="decay of the mean weights")
    parser.add_argument("--weight", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    folder: Path = args.out
    vocab = write_tokenizer(folder)
    data = tiny_config(vocab)
    (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    config = config_from_dict(data, name="tiny")
    weights = dict(_WEIGHTS)
    for text in args.weight:
        name, _, value = text.partition("=")
        weights[name] = float(value)
    image_token = load_tokenizer(folder).control_id("<im_patch>")
    stream = _Stream(config, folder, batch=args.batch, seed=args.seed, questions=args.questions)
    first = next(iter(stream))
    torch.set_num_threads(args.threads)
    trainer = Trainer(config, int((first.ids[0] == image_token).nonzero()[0]))
    if args.start:
        _resume(trainer, args.start)
        kept = copy.deepcopy(trainer)
        if args.link_to:
            _resume(kept, args.link_to)
        trainer.start.append(kept.model.requires_grad_(False))
    else:
        initialise(trainer.model, args.seed)
    fit(trainer, stream, weights, args)


def _resume(trainer: Trainer, start: Path) -> None:
    """Take weights from a ``state.pt``, or from a checkpoint folder (which has no extra heads)."""
    if start.is_dir():
        trainer.model.load_state_dict(load_model(Checkpoint(start)).state_dict())
    else:
        trainer.load_state_dict(torch.load(start, weights_only=True)["trainer"])


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
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4)
    began, saved, shown = time.monotonic(), time.monotonic(), time.monotonic()
    noted: dict[str, list[float]] = {}
    seen = 0
    for step, batch in enumerate(loader):
        elapsed = (time.monotonic() - began) / 60
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
            line = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in noted.items())
            print(f"{elapsed:5.1f} min step {step} images {seen} | {line}", flush=True)
            noted, shown = {}, now
        if now - saved > 120:
            _save(trainer, mean, args.out)
            saved = now
    _save(trainer, mean, args.out)


def _save(trainer: Trainer, mean: dict[str, Tensor], folder: Path) -> None:
    temporary = folder / "state.pt.new"
    torch.save({"trainer": trainer.state_dict(), "mean": mean}, temporary)
    temporary.replace(folder / "state.pt")


if __name__ == "__main__":
    main()
