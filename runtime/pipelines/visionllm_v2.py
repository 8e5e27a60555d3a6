"""VisionLLM v2: how its stages, prompt, routing tokens and decoders are chained.

One decoder session serves every question. A prompt shares its beginning with the one before it, up
to and including the image, so asking again about a picture costs the new words only.

The two ways to ask stand beside this file: ``scripted`` (the answer is known but for its hidden
states) and ``free`` (the model writes the answer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visionllm_edge.runtime.diffusion.image_maker import ImageMaker
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.llm.embeddings import SuperLink
from visionllm_edge.runtime.llm.sequence import ImageRows, TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.pipelines.ahead import Ahead
from visionllm_edge.runtime.pipelines.detector import Detector
from visionllm_edge.runtime.pipelines.marked import Marked, mark, region_rows
from visionllm_edge.runtime.pipelines.picture import Picture, PictureCache, VisionStates
from visionllm_edge.runtime.pipelines.pose import PoseDecoder
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.preprocess import clip_tiles
from visionllm_edge.runtime.prompts import Segment, Turn, conversation
from visionllm_edge.runtime.regions import Region
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["VisionLLMv2", "VisionSettings"]

# Controls besides the routing tokens that the model may write: tags around a phrase or a region.
_WRITABLE = frozenset({"</s>", "<det>", "</det>", "<grd>", "</grd>", "<reg>", "</reg>"})
# What each routing token asks for, and the checkpoint's flag that brings it.
_DECODERS = {
    "[DET]": ("detector", "use_gdino"),
    "[SEG]": ("detector", "use_gdino"),
    "[GRD]": ("detector", "use_gdino"),
    "[POSE]": ("pose", "use_unipose"),
    "[GEN]": ("generate", "use_sd"),
    "[EDIT]": ("edit", "use_ip2p"),
}
# A picture takes many runs of a large network; an answer that repeats itself must end.
_PICTURES = 4


@dataclass(frozen=True)
class VisionSettings:
    """The manifest's constants of the image path into the LLM."""

    image_size: int
    tokens_per_tile: int
    max_tiles: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class VisionLLMv2:
    """The loaded parts, and what every task needs of them.

    Args:
        stages: the bundle's stages.
        tokenizer: of the checkpoint.
        session: the decoder session.
        links: super-link tables.
        vision: constants of the vision path.
        detector: the object decoder, if the bundle has one.
        pose: the keypoint decoder, if the bundle has one.
        generator: makes pictures from words, if the bundle can.
        editor: makes pictures from a picture and words, if the bundle can.
        regions: whether questions may point at regions.
        template: conversation template.
        overlap: whether a request that needs a decoder has its backbone run beside the language
            model; the answers are the same, bit by bit.
    """

    def __init__(
        self,
        *,
        stages: Stages,
        tokenizer: Tokenizer,
        session: DecoderSession,
        links: Sequence[SuperLink],
        vision: VisionSettings,
        detector: Detector | None,
        template: str,
        pose: PoseDecoder | None = None,
        generator: ImageMaker | None = None,
        editor: ImageMaker | None = None,
        regions: bool = False,
        overlap: bool = False,
    ) -> None:
        """Resolve the control tokens by name."""
        self.tokenizer = tokenizer
        self.session = session
        self.template = template
        self.overlap = overlap
        self._stages = stages
        self._vision = vision
        self._detector = detector
        self._pose = pose
        self._makers = {"generate": generator, "edit": editor}
        self.has_regions = regions
        self._pictures = PictureCache()
        self._links = {tokenizer.control_id(token): link for link in links for token in link.tokens}
        self._routing_names = {
            tokenizer.control_id(token): token for link in links for token in link.tokens
        }
        self._im_patch = tokenizer.control_id("<im_patch>")
        self._region = tokenizer.control_id("<region>") if regions else None
        # Position markers, image patches, padding and routing tokens without a table.
        self.suppressed = frozenset(
            token
            for name, token in tokenizer.control_ids.items()
            if name not in _WRITABLE and token not in self._links
        )

    @property
    def routing_ids(self) -> frozenset[int]:
        """Ids of the routing tokens that open a group."""
        return frozenset(self._links)

    @property
    def unanswered(self) -> Mapping[int, str]:
        """Ids of routing tokens that this bundle cannot answer, each with the message for it."""
        out = {}
        for name, (decoder, flag) in _DECODERS.items():
            token = self.tokenizer.control_ids.get(name)
            if token is not None and not (token in self._links and self.has(decoder)):
                out[token] = (
                    f"answer: the model wrote {name}, which asks for the decoder '{decoder}'; this "
                    f"bundle has none. Compile a checkpoint with {flag}, or ask for something else."
                )
        return out

    @property
    def group_limits(self) -> Mapping[frozenset[int], int]:
        """How many groups of each decoder an answer may have, by the ids of its routing tokens."""
        most = {"generate": _PICTURES, "edit": _PICTURES}
        if self._detector is not None:
            most["detector"] = self._detector.spec.max_text_len
        if self._pose is not None:
            most["pose"] = self._pose.spec.max_keypoints
        return {
            frozenset(i for i, link in self._links.items() if link.decoder == decoder): limit
            for decoder, limit in most.items()
        }

    @property
    def detector(self) -> Detector:
        """The object decoder.

        Raises:
            InputError: the bundle has none.
        """
        if self._detector is None:
            raise InputError(
                "detection: expected a bundle with the detector's stages, got one without. "
                "Compile a checkpoint that has a detector."
            )
        return self._detector

    @property
    def pose(self) -> PoseDecoder:
        """The keypoint decoder.

        Raises:
            InputError: the bundle has none.
        """
        if self._pose is None:
            raise InputError(
                "pose: expected a bundle with the keypoint decoder's stages, got one without. "
                "Compile a checkpoint with use_unipose."
            )
        return self._pose

    def maker(self, what: str) -> ImageMaker:
        """The chain that makes pictures: ``generate`` or ``edit``.

        Raises:
            InputError: the bundle has none.
        """
        maker = self._makers[what]
        if maker is None:
            flag = {"generate": "use_sd", "edit": "use_ip2p"}[what]
            raise InputError(
                f"{what}: expected a bundle with the stages that make pictures, got one without. "
                f"Compile a checkpoint with {flag}."
            )
        return maker

    def has(self, decoder: str) -> bool:
        """Whether a decoder of the manifest's superlink section is there, by its name."""
        if decoder in self._makers:
            return self._makers[decoder] is not None
        return {"detector": self._detector, "pose": self._pose}.get(decoder) is not None

    @property
    def has_detector(self) -> bool:
        """Whether boxes can be asked for."""
        return self._detector is not None

    def check_routing(self, routing: str) -> str:
        """A routing token that leads to the detector.

        Raises:
            InputError: it does not.
        """
        known = [
            name
            for token, name in self._routing_names.items()
            if self._links[token].decoder == "detector"
        ]
        if routing not in known:
            raise InputError(
                f"routing token: expected one of {known}, got {routing!r}. Use [DET] for objects."
            )
        return routing

    def open(self, image: ImageLike) -> Picture:
        """Load a picture; its features are found again if it was seen lately.

        Raises:
            InputError: not a usable image.
        """
        return self._pictures.open(image)

    def ahead(self, picture: Picture, decoder: Detector | PoseDecoder) -> Ahead:
        """A decoder's backbone on a picture, to be run beside the language model.

        For requests that are known to need that decoder. Without `overlap`, or if the picture was
        looked at before, there is nothing to start.
        """
        backbone = decoder.backbone
        if not self.overlap or backbone.knows(picture):
            return Ahead(None)
        return Ahead(lambda: backbone.look_at(picture))

    def empty(self) -> TokenSequence:
        """A sequence with nothing in it."""
        return TokenSequence(
            links=self._links,
            names=self._routing_names,
            im_patch=self._im_patch,
            region=self._region,
        )

    def mark(self, picture: Picture, regions: Sequence[Region]) -> Marked:
        """Check visual prompts and turn them into masks; nothing is computed yet.

        Raises:
            InputError: the bundle has no region encoder, or a region cannot be used.
        """
        if not self.has_regions:
            raise InputError(
                "regions: expected a bundle with a region encoder, got one without. "
                "Compile a checkpoint with use_region_encoder."
            )
        return mark(picture, regions, side=self._vision.image_size)

    def prompt(
        self,
        turns: Sequence[Turn],
        picture: Picture | None,
        marked: Marked | None = None,
        *,
        when_it_fits: Callable[[], None] | None = None,
    ) -> TokenSequence:
        """The sequence of a conversation, image tokens and regions attached.

        Arguments as :meth:`extend`.

        Raises:
            ContextError: it does not fit; nothing was computed.
        """
        return self.extend(
            self.empty(),
            conversation(turns, image=picture is not None, template=self.template),
            picture,
            marked,
            when_it_fits=when_it_fits,
        )

    def extend(
        self,
        sequence: TokenSequence,
        segments: Sequence[Segment],
        picture: Picture | None,
        marked: Marked | None = None,
        *,
        when_it_fits: Callable[[], None] | None = None,
    ) -> TokenSequence:
        """Add segments to a sequence. The vision encoder runs only if the whole prompt fits.

        Args:
            sequence: what stands there already.
            segments: what comes behind it.
            picture: whose image tokens the segments hold; None if they hold none.
            marked: the regions that the segments point at, in order.
            when_it_fits: called when the whole prompt is known to fit, before anything is computed.

        Raises:
            ContextError: it does not fit; the sequence is as it was.
        """
        ids = self.tokenizer.encode(
            segments,
            image_tokens=self._count_image_tokens(picture) if picture is not None else 0,
            bos=not sequence.ids,
        )
        self.session.require(len(sequence) + sequence.cost(ids))
        if when_it_fits is not None:
            when_it_fits()
        if picture is not None and sequence.image is None:
            sequence.image = self._image_rows(picture)
        rows = []
        if marked is not None:
            self._image_rows(marked.picture)
            rows = region_rows(self._stages, marked)
        assert len(rows) == sequence.count_regions(ids), "a region for each place"
        sequence.append(ids, rows)
        return sequence

    def _count_image_tokens(self, picture: Picture) -> int:
        if picture.image_rows is not None:
            return len(picture.image_rows.rows_MD)
        if picture.tiles is None:
            picture.tiles = clip_tiles(
                picture.rgb,
                image_size=self._vision.image_size,
                max_tiles=self._vision.max_tiles,
                mean=self._vision.mean,
                std=self._vision.std,
            )
        return len(picture.tiles) * self._vision.tokens_per_tile

    def _image_rows(self, picture: Picture) -> ImageRows:
        if picture.image_rows is None:
            count = self._count_image_tokens(picture)
            assert picture.tiles is not None
            outputs = self._stages.get("vision_encoder").run({"pixels": picture.tiles})
            tokens_nPD = outputs["image_tokens"]  # noqa: N806 (axis letters)
            rows = np.array(tokens_nPD, np.float32).reshape(count, tokens_nPD.shape[-1])
            picture.image_rows = ImageRows(picture.key, rows)
            if self.has_regions:
                # The whole picture is the last tile.
                level1, states = (
                    np.array(outputs[name][-1:], np.float32) for name in ("level1", "states")
                )
                whole = np.ascontiguousarray(picture.tiles[-1:])
                picture.vision_states = VisionStates(whole, level1, states)
            picture.tiles = None
        return picture.image_rows
