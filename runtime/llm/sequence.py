"""What stands in the decoder's context: tokens, image, region and super-link rows, by position.

The ids of a conversation carry no markers. The context is longer: each routing token is followed by
the N rows of its super-link table, so position = number of ids before + rows of the groups before.
A sequence keeps both views in step, however many groups of whatever kind a history holds, and
whether they came from a prompt, from a scripted answer or from generation.

A region takes the place of one ``<region>`` id. Its position is known by what the region is, not by
that id, so that a cache never takes one region for another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.llm.embeddings import EmbeddingTable, SuperLink

__all__ = ["Group", "ImageRows", "RegionRow", "TokenSequence"]

# Keys of region rows lie below this, those of super-link rows (-1 - r) above.
_REGION_KEYS = -(1 << 32)


@dataclass(frozen=True)
class Group:
    """A routing token and the super-link rows behind it.

    Attributes:
        routing: name of the routing token.
        token_index: where the routing token stands among the ids.
        position: where it stands in the context; its rows are ``position + 1 .. position + rows``.
        rows: N, the number of rows.
        decoder: which decoder reads their hidden states.
    """

    routing: str
    token_index: int
    position: int
    rows: int
    decoder: str


@dataclass(frozen=True)
class ImageRows:
    """Image tokens as embeddings.

    Attributes:
        key: identifies the picture: equal keys mean equal rows.
        rows_MD: float32 ``[M, D]``, tiles in order, the whole picture last.
    """

    key: str
    rows_MD: NDArray[np.float32]  # noqa: N815 (axis letters)


@dataclass(frozen=True)
class RegionRow:
    """One region as an embedding.

    Attributes:
        number: 0 .. 2**62 - 1, identifies picture and mask: equal numbers mean equal rows.
        row_D: float32 ``[D]``.
    """

    number: int
    row_D: NDArray[np.float32]  # noqa: N815 (axis letters)


class TokenSequence:
    """Ids, and the context positions that they take.

    Args:
        links: super-link table by id of its routing token.
        names: name by id of the routing tokens.
        im_patch: id whose embedding an image row replaces.
        region: id whose embedding a region's row replaces; None without regions.
        image: the picture of this conversation, if it has one.
    """

    def __init__(
        self,
        *,
        links: Mapping[int, SuperLink],
        names: Mapping[int, str],
        im_patch: int,
        region: int | None = None,
        image: ImageRows | None = None,
    ) -> None:
        """Start empty."""
        self._links = links
        self._names = names
        self._im_patch = im_patch
        self._region = region
        self._region_rows: dict[int, NDArray[np.float32]] = {}
        self.image = image
        self.ids: list[int] = []
        self.groups: list[Group] = []
        # One entry per context position: the id, or -1 - r for row r of the group before it, or
        # a number far below that for a region.
        self.keys: list[int] = []

    def __len__(self) -> int:
        """Context positions taken."""
        return len(self.keys)

    def cost(self, ids: Iterable[int]) -> int:
        """Positions that these ids would take."""
        return sum(1 + (len(self._links[i].rows_ND) if i in self._links else 0) for i in ids)

    def count_regions(self, ids: Iterable[int]) -> int:
        """How many regions these ids have places for."""
        return sum(token == self._region for token in ids)

    def append(self, ids: Iterable[int], regions: Sequence[RegionRow] = ()) -> list[Group]:
        """Add ids; every routing token brings its rows along. Returns the new groups.

        Args:
            ids: what to add.
            regions: what takes the places of the ``<region>`` ids among them, in order.
        """
        first = len(self.groups)
        waiting = iter(regions)
        for token in ids:
            link = self._links.get(token)
            if link is not None:
                self.groups.append(
                    Group(
                        routing=self._names[token],
                        token_index=len(self.ids),
                        position=len(self.keys),
                        rows=len(link.rows_ND),
                        decoder=link.decoder,
                    )
                )
            self.ids.append(token)
            self.keys.append(self._place(next(waiting)) if token == self._region else token)
            if link is not None:
                self.keys.extend(range(-1, -1 - len(link.rows_ND), -1))
        assert next(waiting, None) is None, "a place for every region"
        return self.groups[first:]

    def _place(self, region: RegionRow) -> int:
        key = _REGION_KEYS - region.number
        self._region_rows[key] = region.row_D
        return key

    def copy(self) -> TokenSequence:
        """A sequence of its own with the same content; the image rows are shared."""
        other = TokenSequence(
            links=self._links,
            names=self._names,
            im_patch=self._im_patch,
            region=self._region,
            image=self.image,
        )
        other.ids, other.groups, other.keys = list(self.ids), list(self.groups), list(self.keys)
        other._region_rows = dict(self._region_rows)
        return other

    def cut_after_last_group(self) -> None:
        """Drop the ids behind the last group; a sequence without groups stays as it is."""
        if self.groups:
            last = self.groups[-1]
            del self.ids[last.token_index + 1 :]
            del self.keys[last.position + last.rows + 1 :]

    def drop_plain(self, count: int) -> None:
        """Drop the last ``count`` ids, none of which opened a group."""
        if count:
            del self.ids[-count:]
            del self.keys[-count:]

    def opens_group(self, token: int) -> bool:
        """Whether an id is a routing token, which brings rows along."""
        return token in self._links

    def image_start(self) -> int | None:
        """First position that holds an image row."""
        try:
            return self.keys.index(self._im_patch)
        except ValueError:
            return None

    def embeddings(
        self, start: int, table: EmbeddingTable, end: int | None = None
    ) -> NDArray[np.float32]:
        """Rows ``[end - start, D]`` of the context, float32, new; ``end`` None is its end."""
        end = len(self.keys) if end is None else end
        keys = np.array(self.keys[start:end], dtype=np.int64)
        rows = table.rows(np.maximum(keys, 0))
        patches = np.flatnonzero(keys == self._im_patch)
        if patches.size:
            assert self.image is not None, "image positions without an image"
            total = self.keys.count(self._im_patch)
            assert total == len(self.image.rows_MD), "one row for each image position"
            before = self.keys[:start].count(self._im_patch)
            rows[patches] = self.image.rows_MD[before : before + patches.size]
        for position in np.flatnonzero(keys <= _REGION_KEYS):
            rows[position] = self._region_rows[int(keys[position])]
        for group in reversed(self.groups):
            first, last = group.position + 1, group.position + 1 + group.rows
            if last <= start:
                break
            if first >= end:
                continue
            link = self._links[self.ids[group.token_index]]
            low, high = max(first, start), min(last, end)
            rows[low - start : high - start] = link.rows_ND[low - first : high - first]
        return rows
