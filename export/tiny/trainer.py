"""The model in training: forward passes over packed rows, and every loss.

Throw-away heads help: shape and colour per patch for both image towers, shape and colour per class
name for the super link, the place of what a region points at, and what the rows for pose,
generation and editing have heard.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.region_encoder import RegionEncoder
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.tiny.batches import Batch
from visionllm_edge.export.tiny.exchanges import MARKS
from visionllm_edge.export.tiny.losses import decoder_losses, proposal_losses
from visionllm_edge.export.tiny.rows import Links, Regions
from visionllm_edge.export.tiny.speaker import KINDS
from visionllm_edge.runtime.shapes_world import COLORS, SHAPES

__all__ = ["Trainer", "hidden_states", "look", "main_states", "region_rows"]

_LINK_GRADIENT = 0.05
"""Share of the detector's gradient that reaches the language model through the super link."""

_NAME_GAP = 10.0
"""Logits by which a text that fits perfectly is ahead of a name at the usual distance."""

_TABLE_NOISE = 0.5
"""Noise on the tables that other decoders learn later, as a share of the detector table's size."""


def look(model: VisionLLM, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """``hidden_states[-3]`` and ``[-2]`` of the vision encoder, [B,P+1,C] each."""
    before, states = model.vis_encoder.states(tiles)
    return before, states


def region_rows(
    model: VisionLLM, tiles: Tensor, regions: Regions, before: Tensor, states: Tensor
) -> Tensor:
    """Rows [R,D] of the language model for regions; what the stage computes, with gradients.

    Args:
        model: with a region encoder.
        tiles: [B,3,I,I].
        regions: masks and whose they are.
        before: [B,P+1,C], ``hidden_states[-3]``.
        states: [B,P+1,C], ``hidden_states[-2]``.
    """
    encoder: RegionEncoder = model.region_encoder
    last = model.vis_encoder.last_layer(states, attention_mask=None)
    levels = (before + states * (2 / 3) + last * (1 / 3))[:, 1:][regions.rows]
    maps = encoder.mask_embedding(torch.cat([tiles[regions.rows], regions.masks], dim=1))
    size, cells = regions.masks.shape[-1], maps.shape[-1]
    # Pixel p of a mask reads the cells beside p * cells / size - 0.5, as grid_sample does.
    place = torch.arange(size)[:, None] * (cells / size) - 0.5
    tent = (1 - (place - torch.arange(cells)).abs()).clamp(min=0)
    weight = tent.T @ regions.masks[:, 0] @ tent / regions.masks.sum(dim=(2, 3))[..., None]
    features = maps.flatten(2).transpose(1, 2) + levels
    out: Tensor = encoder.up_dim(torch.einsum("rp,rpc->rc", weight.flatten(1), features))
    return out


def hidden_states(
    model: VisionLLM,
    batch: Batch,
    image: Tensor,
    regions: Tensor | None = None,
    *,
    noise: float = 0.0,
    end: int | None = None,
) -> Tensor:
    """Hidden states [B,L,D] of whole rows.

    Args:
        model: whose language model and tables.
        batch: the rows.
        image: [B,P,D] image tokens.
        regions: [R,D] in the order of ``batch.regions``; None leaves their places as they are.
        noise: size of the noise on the tables other than the detector's.
        end: look at the first so many positions only.
    """
    embeds = model.llm.model.embed_tokens(batch.ids)
    at = batch.image_start
    embeds = torch.cat([embeds[:, :at], image, embeds[:, at + image.shape[1] :]], dim=1)
    if regions is not None and batch.regions is not None:
        embeds = embeds.index_put((batch.regions.rows, batch.regions.places), regions)
    for name, links in batch.links.items():
        table = getattr(model, f"emb_embeddings_{name}").weight
        if noise and name != "det":
            table = table + torch.randn_like(table) * noise
        rows = table.expand(*links.places.shape, -1)
        embeds = embeds.index_put((links.rows[:, None], links.places), rows)
    return model.llm.teacher_forced(
        embeds[:, :end], mask=batch.mask[:, :, :end, :end], positions=batch.positions[:, :end]
    )


class Trainer(nn.Module):
    """The model with the throw-away heads."""

    def __init__(self, config: VisionLLMConfig) -> None:
        """Fresh weights."""
        super().__init__()
        self.model = VisionLLM(config)
        # In a list, so that it is no part of this module: whose super link a language run keeps.
        self.start: list[VisionLLM] = []
        self.patch_head = nn.Linear(config.vision.hidden_size, 12)
        self.cell_head = nn.Conv2d(config.detector.backbone.channels[1], 12, 1)
        # 6 shapes, then no colour or one of 6: for the super link's text, before and after fusion.
        dim, width = config.detector.d_model, config.llm.hidden_size
        self.name_heads = nn.ModuleList([nn.Linear(dim, 13), nn.Linear(dim, 13)])
        self.region_head = nn.Linear(width, 12 + 4)
        self.place_head = nn.Linear(config.num_embs * width, 4)
        self.mark_heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in MARKS.items()})
        self.register_buffer("texts", torch.zeros(len(SHAPES), 1 + len(COLORS), dim))
        self.texts: Tensor

    def losses(self, batch: Batch, part: str, step: int) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            batch: the data.
            part: ``vision``, the vision encoder alone; ``language``, region encoder, bridge and
                language model, with the super link held where the start was; ``detector``, the
                object decoder alone; ``joint``, everything.
            step: the super link is held on every third step only, which is enough.
        """
        model = self.model
        if part == "detector":
            with torch.no_grad():
                before, states = look(model, batch.tiles)
                regions = self._regions(batch, before, states)
                end = None if bool(batch.linked.any()) else batch.head
                hidden = self._hidden(batch, states, regions, end=end)
            return self._detector(batch, main_states(hidden, batch))
        if part == "vision":
            return {"patch": self._patch_loss(model.vis_encoder(batch.tiles), batch)}
        with torch.set_grad_enabled(part == "joint"):
            before, states = look(model, batch.tiles)
        regions = self._regions(batch, before, states)
        hidden = self._hidden(batch, states, regions)
        out = self._said(hidden, batch)
        if part == "joint":
            out["patch"] = self._patch_loss(states[:, 1:], batch)
            text = model.gdino.patch2query(main_states(hidden, batch)).mean(dim=2)
            out["name"] = self._name_loss(0, text, batch)
            return out | self._detector(batch, main_states(hidden, batch))
        out |= self._heard(hidden, batch)
        if regions is not None and batch.regions is not None:
            out |= self._region_losses(regions, batch.regions)
        if step % 3 == 0 and not bool(batch.linked.all()):
            out["link"] = self._link_loss(hidden, batch)
        return out

    @torch.no_grad()
    def learn_texts(self, some: list[Batch]) -> None:
        """Note what the start's super link says of each name, on average over its contexts."""
        start = self.start[0]
        total, count = torch.zeros_like(self.texts), torch.zeros(self.texts.shape[:2])
        for batch in some:
            image = start.image_tokens(batch.tiles)
            hidden = hidden_states(start, batch, image, end=batch.head)
            text = start.gdino.patch2query(main_states(hidden, batch)).mean(dim=2)
            usable = ~batch.linked
            shape, color = batch.names[usable].flatten(0, 1).unbind(-1)
            total.index_put_((shape, color), text[usable].flatten(0, 1), accumulate=True)
            count.index_put_((shape, color), torch.ones(len(shape)), accumulate=True)
        assert bool((count > 0).all()), f"names without an example: {int((count == 0).sum())}"
        self.texts.copy_(total / count[..., None])

    def _regions(self, batch: Batch, before: Tensor, states: Tensor) -> Tensor | None:
        if batch.regions is None:
            return None
        return region_rows(self.model, batch.tiles, batch.regions, before, states)

    def _hidden(
        self, batch: Batch, states: Tensor, regions: Tensor | None, *, end: int | None = None
    ) -> Tensor:
        model = self.model
        noise = _TABLE_NOISE * float(model.emb_embeddings_det.weight.detach().std())
        image = model.vl_bridge(states[:, 1:])
        return hidden_states(model, batch, image, regions, noise=noise, end=end)

    def _said(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """One mean per kind of turn."""
        wanted = batch.targets >= 0
        logits = self.model.llm.lm_head(hidden[wanted])
        nll = F.cross_entropy(logits, batch.targets[wanted], reduction="none")
        kind, out = batch.kind[wanted], {}
        for i, name in enumerate(KINDS):
            if bool((kind == i).any()):
                out[name] = nll[kind == i].mean()
        return out

    def _region_losses(self, rows: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Shape, colour and place of what is marked, read from the region encoder's rows."""
        guess = self.region_head(F.layer_norm(rows, rows.shape[-1:]))
        shape, color = regions.names.unbind(-1)
        return {
            "marked": F.cross_entropy(guess[:, :6], shape)
            + F.cross_entropy(guess[:, 6:12], color - 1),
            "marked_place": F.l1_loss(guess[:, 12:].sigmoid(), regions.boxes),
        }

    def _heard(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What the super link's rows must tell in turns that the start has never seen."""
        out: dict[str, Tensor] = {}
        for table, links in batch.links.items():
            rows = hidden[links.rows[:, None], links.places]
            if table == "det":
                out |= self._named(rows, links)
                continue
            guess = self.mark_heads[table](rows.mean(dim=1))
            if table == "pose":
                out[f"heard_{table}"] = F.cross_entropy(guess, links.marks)
            else:
                weight = torch.tensor(6.0)
                out[f"heard_{table}"] = F.binary_cross_entropy_with_logits(
                    guess, links.marks, pos_weight=weight
                )
        return out

    def _named(self, rows: Tensor, links: Links) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        named = links.extra & (links.names[:, 0] >= 0)
        for name, chosen in (("text", named & ~links.pointed), ("pointed", named & links.pointed)):
            if bool(chosen.any()):
                text = self.start[0].gdino.patch2query(rows[chosen]).mean(dim=1)
                shape, color = links.names[chosen].unbind(-1)
                out[name] = F.mse_loss(text, self.texts[shape, color]) / self.texts.var()
                if name == "pointed":
                    out["pointed_name"] = self._nearest_loss(text, shape, color)
        placed = links.boxes[:, 0] >= 0
        if bool(placed.any()):
            place = self.place_head(rows[placed].flatten(1)).sigmoid()
            out["place"] = F.l1_loss(place, links.boxes[placed])
        return out

    def _nearest_loss(self, text: Tensor, shape: Tensor, color: Tensor) -> Tensor:
        """Cross entropy over the names: a text is to be nearest to its own.

        A plain distance hardly tells a wrong name from the average of all, and was not learned.
        """
        known = self.texts[:, 1:].flatten(0, 1)
        scale = torch.pdist(known).square().median() / _NAME_GAP
        logits = -torch.cdist(text, known).square() / scale
        return F.cross_entropy(logits, shape * len(COLORS) + color - 1)

    def _link_loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The main turns' super link is held where the start had it."""
        start, usable = self.start[0], ~batch.linked
        with torch.no_grad():
            image = start.image_tokens(batch.tiles)
            before = main_states(hidden_states(start, batch, image, end=batch.head), batch)
        loss = F.mse_loss(main_states(hidden, batch)[usable], before[usable])
        return loss / before[usable].var()

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


def main_states(hidden: Tensor, batch: Batch) -> Tensor:
    """States [B,T,N,D] of the main turns; places beyond what was looked at give the last one."""
    rows = torch.arange(len(hidden))[:, None, None]
    return hidden[rows, batch.groups.clamp(max=hidden.shape[1] - 1)]
