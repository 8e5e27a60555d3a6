"""Train the tiny keypoint decoder on the CPU, behind a language model that stays as it is.

Run as ``python -m visionllm_edge.export.tiny.train_pose``. It starts from the trained object
decoder, and learns the keypoint decoder and the super-link rows behind ``[POSE]``. The language
model sees few pictures of each batch; what it says of them serves the others too, since names mean
the same in every picture. A throw-away head tells keypoint names apart.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.detector_layers import Surroundings
from visionllm_edge.export.components.geometry import Geometry, LevelGeometry
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.pose_decoder import PoseDecoder
from visionllm_edge.export.config_pose import pose_config
from visionllm_edge.export.config_section import Section
from visionllm_edge.export.tiny.frozen_model import frozen_model, frozen_tokenizer
from visionllm_edge.export.tiny.losses import proposal_losses
from visionllm_edge.export.tiny.pose_batches import (
    NAMES,
    PoseBatch,
    Spoken,
    pose_batches,
    pose_questions,
)
from visionllm_edge.export.tiny.pose_initial import from_object_decoder, new_parts
from visionllm_edge.export.tiny.pose_losses import (
    box_losses,
    dense_loss,
    keypoint_losses,
    name_loss,
)
from visionllm_edge.export.tiny.pose_scores import HeldOut, held_out, right_keypoints
from visionllm_edge.export.tiny.pose_sizes import tiny_unipose

_WEIGHTS = {
    "enc_class": 0.4, "enc_l1": 1.0, "enc_giou": 0.4,
    "box_class": 0.5, "box_l1": 1.0, "box_giou": 0.4,
    "class": 0.5, "l1": 1.0, "giou": 0.4,
    "start": 0.5, "point": 2.0, "oks": 1.0, "name": 0.3, "dense": 1.0,
}  # fmt: skip
_SPOKEN_TO = 2
"""Pictures of a batch that the language model sees."""
_AVERAGE_STEPS = 4
_INSTANCES = 7
_LINK_STEPS = 8
"""The gradient goes through the language model on one of so many steps: it is a third of a step."""
_MATCHING_RATE = 2e-3
_NEW_RATE = 2.0
"""Learning rate of new parts, in units of that of the parts that come from the object decoder."""


class PoseTrainer(nn.Module):
    """What learns: keypoint decoder, super-link rows, the head that names keypoints."""

    def __init__(self, model: VisionLLM) -> None:
        """Start from a trained model's object decoder and object rows."""
        super().__init__()
        dim, rows = model.config.llm.hidden_size, model.config.num_embs
        section = Section(tiny_unipose(dim), "unipose_config", supported="", wanted="")
        self.unipose = PoseDecoder(pose_config(section, dim, rows))
        from_object_decoder(self.unipose, model.gdino)
        self.emb_embeddings_pose = nn.Embedding(rows, dim)
        with torch.no_grad():
            self.emb_embeddings_pose.weight.copy_(model.emb_embeddings_det.weight)
        self.name_head = nn.Linear(self.unipose.config.d_model, len(NAMES))
        self.dense_head = nn.Linear(self.unipose.config.d_model, 2 * len(NAMES))
        # In a list, so that it is no part of this module: it does not learn and is not saved.
        self.rest: list[VisionLLM] = [model]
        self.said: tuple[Spoken, Tensor, Tensor] | None = None
        self.sizes = lru_cache(maxsize=8)(self._sizes)

    def states(self, spoken: Spoken, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [m,No,N,D] of the object rows and [m,K,N,D] of the keypoint rows."""
        model = self.rest[0]
        count = model.config.vision.tokens_per_tile
        with torch.no_grad():
            image = model.image_tokens(tiles)
            embeds = model.llm.model.embed_tokens(spoken.ids)
            embeds = embeds.index_put(
                (spoken.objects,), model.emb_embeddings_det.weight.expand(*spoken.objects.shape, -1)
            )
        table = self.emb_embeddings_pose.weight.expand(*spoken.keypoints.shape, -1)
        embeds = embeds.index_put((spoken.keypoints,), table).expand(len(tiles), -1, -1)
        at = spoken.image_start
        embeds = torch.cat([embeds[:, :at], image, embeds[:, at + count :]], dim=1)
        hidden = model.llm.teacher_forced(embeds)
        return hidden[:, spoken.objects], hidden[:, spoken.keypoints]

    def losses(self, batch: PoseBatch, step: int) -> dict[str, Tensor]:
        """Losses of one batch; every few steps reach the super-link rows."""
        pose = self.unipose
        if self.said is None or self.said[0] is not batch.spoken or step % _LINK_STEPS == 0:
            with torch.set_grad_enabled(step % _LINK_STEPS == 0):
                objects, points = self.states(batch.spoken, batch.tiles)
            self.said = batch.spoken, objects.detach(), points.detach()
        else:
            _, objects, points = self.said
        names = pose.projection_kpt_llava(points).mean(dim=2)
        centred = nn.functional.layer_norm(names, names.shape[-1:])
        out = {"name": name_loss(self.name_head(centred), batch.chosen)}
        repeats = -(-len(batch.pixels) // len(objects))
        objects = objects.detach().repeat(repeats, 1, 1, 1)[: len(batch.pixels)]
        names = names.repeat(repeats, 1, 1)[: len(batch.pixels)]
        geometry, level = self.sizes(batch.size)
        size = geometry.full_size()
        memory, text = pose.encode(*pose.backbone_maps(batch.pixels), size, objects, geometry)
        out["dense"] = dense_loss(self.dense_head(memory), batch.truth, geometry, batch.size)
        proposals = pose.propose(memory, text, level)
        out |= proposal_losses(proposals, batch.truth, geometry)
        found = pose.box_layers(proposals, memory, text, level, geometry)
        for layer in found:
            out |= box_losses(layer, batch.truth)
        # Fewer than at inference: those further down the list rarely cover a person.
        instances, boxes = (x[:, :_INSTANCES] for x in pose.best_instances(found[-1]))
        boxes = boxes.detach()
        around = Surroundings(memory, text, level.mask, geometry)
        layers = pose.keypoint_layers(instances, boxes, names, around, level, every=True)
        return out | keypoint_losses(boxes, layers, batch.truth, batch.size)

    def _sizes(self, size: tuple[int, int]) -> tuple[Geometry, LevelGeometry]:
        geometry = Geometry(*size)
        return geometry, self.unipose.levels(geometry.full_size(), geometry)

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds of this, by its official name."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(("name_head.", "dense_head."))
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, default=Path("export/tiny/checkpoint"))
    parser.add_argument("--llm", type=Path, help="folder of the language model; default: start")
    parser.add_argument("--out", type=Path, default=Path("build/tiny_pose"))
    parser.add_argument("--resume", type=Path, help="state.pt to go on from")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--average", type=float, default=0.997, help="decay of the mean weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--whole", type=float, default=0.6, help="share of usual questions")
    parser.add_argument(
        "--match-minutes", type=float, default=4.0, help="for names, after a change of --llm"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-links", action="store_true", help="learn what reads the LLM alone")
    parser.add_argument("--score-minutes", type=float, default=5.0)
    parser.add_argument("--score-pictures", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    spoken_from: Path = args.llm or args.start
    trainer = PoseTrainer(frozen_model(args.start))
    if args.resume:
        trainer.load_state_dict(torch.load(args.resume, weights_only=True)["trainer"], strict=False)
    tokenizer = frozen_tokenizer(spoken_from)
    if spoken_from != args.start:
        change_language(trainer, frozen_model(spoken_from), args)
    config = trainer.rest[0].config
    scores = held_out(config, tokenizer, count=args.score_pictures)
    batches = pose_batches(
        config, tokenizer, batch=args.batch, spoken_to=_SPOKEN_TO, seed=args.seed, whole=args.whole
    )
    fit(trainer, batches, scores, args)


def change_language(trainer: PoseTrainer, model: VisionLLM, args: argparse.Namespace) -> None:
    """Put another language model before the decoder: keypoint names shall mean to it what they did.

    The decoder's inputs for the 17 names are kept; super-link rows and projection learn to make
    them out of the other model's states, for some or all names in any order.
    """
    names = _known_names(trainer, args)
    trainer.rest[0] = model
    with torch.no_grad():
        trainer.emb_embeddings_pose.weight.copy_(model.emb_embeddings_pose.weight)
    projection = trainer.unipose.projection_kpt_llava
    learnt = [*projection.parameters(), trainer.emb_embeddings_pose.weight]
    optimizer = torch.optim.AdamW(learnt, lr=_MATCHING_RATE)
    questions = pose_questions(
        model.config, frozen_tokenizer(args.llm), pictures=_SPOKEN_TO, seed=args.seed, whole=0.4
    )
    began, noted = time.monotonic(), []
    for step, (spoken, tiles, chosen) in enumerate(questions):
        left = 1 - (time.monotonic() - began) / (60 * args.match_minutes)
        if left <= 0:
            break
        for group in optimizer.param_groups:
            group["lr"] = _MATCHING_RATE * left
        with torch.set_grad_enabled(step % 2 == 0):
            _, points = trainer.states(spoken, tiles)
        found = projection(points).mean(dim=2)
        loss = (
            nn.functional.mse_loss(found, names[chosen].expand_as(found)) / names.var(dim=0).mean()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        noted.append(float(loss.detach()))
        if step % 50 == 49:
            print(f"names: step {step + 1}, loss {sum(noted) / len(noted):.3f}", flush=True)
            noted = []


@torch.no_grad()
def _known_names(trainer: PoseTrainer, args: argparse.Namespace) -> Tensor:
    """What the decoder is given for each of the 17 names [17,d] before the change."""
    questions = pose_questions(
        trainer.rest[0].config, frozen_tokenizer(args.start), pictures=8, seed=args.seed, whole=1.0
    )
    found = []
    for _ in range(4):
        spoken, tiles, _ = next(questions)
        _, points = trainer.states(spoken, tiles)
        found.append(trainer.unipose.projection_kpt_llava(points).mean(dim=(0, 2)))
    return torch.stack(found).mean(dim=0)


def fit(
    trainer: PoseTrainer,
    batches: Iterator[PoseBatch],
    scores: HeldOut,
    args: argparse.Namespace,
) -> None:
    """Train for ``args.minutes`` of wall clock; writes ``state.pt`` every two minutes."""
    optimizer = torch.optim.AdamW(_groups(trainer, args), lr=args.lr, betas=(0.9, 0.98), fused=True)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    learnt = [p for group in optimizer.param_groups for p in group["params"]]
    mean = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    began = saved = shown = scored = time.monotonic()
    noted: dict[str, list[float]] = {}
    torch.set_flush_denormal(True)
    for step, batch in enumerate(batches):
        minutes = (time.monotonic() - began) / 60
        done = minutes / args.minutes
        if done >= 1:
            break
        rate = min(1.0, (step + 1) / args.warmup) * max(0.5 * (1 + math.cos(math.pi * done)), 0.01)
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * rate
        losses = trainer.losses(batch, step)
        total = torch.stack([_WEIGHTS[name] * value for name, value in losses.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(float(nn.utils.clip_grad_norm_(learnt, 2.0))):
            print(f"step {step}: gradient is not finite, step left out", flush=True)
            continue
        optimizer.step()
        if step % _AVERAGE_STEPS == 0:
            keep = min(args.average**_AVERAGE_STEPS, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, value in trainer.weights().items():
                    mean[name].lerp_(value, 1 - keep)
        for name, value in losses.items():
            noted.setdefault(name, []).append(float(value.detach()))
        now = time.monotonic()
        if now - shown > 30:
            line = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in noted.items())
            print(f"{minutes:5.1f} min step {step} | {line}", flush=True)
            noted, shown = {}, now
        if now - saved > 120:
            _save(trainer, mean, args.out)
            saved = time.monotonic()
        if now - scored > 60 * args.score_minutes:
            print(f"{minutes:5.1f} min {score(trainer, mean, scores)}", flush=True)
            scored = time.monotonic()
    _save(trainer, mean, args.out)
    print(f"end {score(trainer, mean, scores)}", flush=True)


def _groups(trainer: PoseTrainer, args: argparse.Namespace) -> list[dict[str, object]]:
    """Parameters by learning rate and weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainer.named_parameters():
        own = name.removeprefix("unipose.")
        new = own == name or new_parts(own)
        reads = own == name or own.startswith("projection_")
        parameter.requires_grad_(reads or not args.only_links)
        if parameter.requires_grad:
            groups.setdefault((new, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": args.lr * (_NEW_RATE if new else 1.0),
            "weight_decay": 0.02 if decay else 0.0,
        }
        for (new, decay), parameters in groups.items()
    ]


@torch.no_grad()
def score(trainer: PoseTrainer, mean: dict[str, Tensor], held: HeldOut) -> str:
    """Share of visible keypoints found with the averaged weights, as a line of text."""
    kept = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    trainer.load_state_dict(mean, strict=False)
    geometry, _ = trainer.sizes(held.size)
    size, right, visible = geometry.full_size(), [], []
    trainer.sizes.cache_clear()
    for i, truth in enumerate(held.truth):
        objects, points = trainer.states(held.spoken, held.tiles[i : i + 1])
        pose = trainer.unipose
        maps = pose.backbone_maps(held.pixels[i : i + 1])
        memory, text = pose.encode(*maps, size, objects, geometry)
        instances, boxes = pose.instances(memory, text, size, geometry)
        logits, boxes, keypoints = pose.keypoints(
            memory, text, instances, boxes, points, size, geometry
        )
        one = right_keypoints(logits[0, :, 0], boxes[0], keypoints[0], truth, held.size)
        right.append(one[0])
        visible.append(one[1])
    trainer.load_state_dict(kept, strict=False)
    found, seen = torch.cat(right), torch.cat(visible)
    missed = int((~found.any(1)).sum())
    by_name = found.sum(0) / seen.sum(0).clamp(min=1)
    worst = int(by_name.argmin())
    return (
        f"PCK@0.2 {float(found.sum() / seen.sum()):.4f} of {int(seen.sum())} keypoints, "
        f"{missed} of {len(found)} people without any, worst {NAMES[worst]} {by_name[worst]:.3f}"
    )


def _save(trainer: PoseTrainer, mean: dict[str, Tensor], folder: Path) -> None:
    temporary = folder / "state.pt.new"
    torch.save({"trainer": trainer.state_dict(), "mean": mean}, temporary)
    temporary.replace(folder / "state.pt")


if __name__ == "__main__":
    main()
