"""VisionLLM v2: how its stages, prompt, routing tokens and decoders are chained.

One decoder session serves every question. A prompt shares its beginning with the one before it, up
to and including the image, so asking again about a picture costs the new words only.

The two ways to ask stand beside this file: ``scripted`` (the answer is known but for its hidden
states) and ``free`` (the model writes the answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.llm.embeddings import SuperLink
from visionllm_edge.runtime.llm.sequence import ImageRows, TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.pipelines.detector import Detector
from visionllm_edge.runtime.pipelines.picture import Picture, PictureCache
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.preprocess import clip_tiles
from visionllm_edge.runtime.prompts import Segment, Turn, conversation
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["VisionLLMv2", "VisionSettings"]

# Controls besides the routing tokens that the model may write: tags around a phrase or a region.
_WRITABLE = frozenset({"</s>", "<det>", "</det>", "<grd>", "</grd>", "<reg>", "</reg>"})


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
        template: conversation template.
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
    ) -> None:
        """Resolve the control tokens by name."""
        self.tokenizer = tokenizer
        self.session = session
        self.template = template
        self._stages = stages
        self._vision = vision
        self._detector = detector
        self._pictures = PictureCache()
        self._links = {tokenizer.control_id(token): link for link in links for token in link.tokens}
        self._routing_names = {
            tokenizer.control_id(token): token for link in links for token in link.tokens
        }
        self._im_patch = tokenizer.control_id("<im_patch>")
        # Position markers, image patches, padding and routing tokens without a table.
        self.suppressed = frozenset(
            token
            for name, token in tokenizer.control_ids.items()
            if name not in _WRITABLE and token not in self._links
        )

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

    def empty(self) -> TokenSequence:
        """A sequence with nothing in it."""
        return TokenSequence(links=self._links, names=self._routing_names, im_patch=self._im_patch)

    def prompt(self, turns: Sequence[Turn], picture: Picture | None) -> TokenSequence:
        """The sequence of a conversation, image tokens attached.

        Raises:
            ContextError: it does not fit; nothing was computed.
        """
        return self.extend(
            self.empty(),
            conversation(turns, image=picture is not None, template=self.template),
            picture,
        )

    def extend(
        self, sequence: TokenSequence, segments: Sequence[Segment], picture: Picture | None
    ) -> TokenSequence:
        """Add segments to a sequence. The vision encoder runs only if the whole prompt fits.

        Raises:
            ContextError: it does not fit; the sequence is as it was.
        """
        ids = self.tokenizer.encode(
            segments,
            image_tokens=self._count_image_tokens(picture) if picture is not None else 0,
            bos=not sequence.ids,
        )
        self.session.require(len(sequence) + sequence.cost(ids))
        if picture is not None and sequence.image is None:
            sequence.image = self._image_rows(picture)
        sequence.append(ids)
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
            tokens_nPD = self._stages.get("vision_encoder").run({"pixels": picture.tiles})[  # noqa: N806
                "image_tokens"
            ]
            rows = np.array(tokens_nPD, np.float32).reshape(count, tokens_nPD.shape[-1])
            picture.image_rows = ImageRows(picture.key, rows)
            picture.tiles = None
        return picture.image_rows
