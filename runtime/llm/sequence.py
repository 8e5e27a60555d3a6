"""What stands in the decoder's context: tokens, image rows and super-link rows, by position.

The ids of a conversation carry no markers. The context is longer: each routing token is followed by
the N rows of its super-link table, so position = number of ids before + rows of the groups before.
A sequence keeps both views in step, however many groups of whatever kind a history holds, and
whether they came from a prompt, from a scripted answer or from generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.llm.embeddings import EmbeddingTable, SuperLink

__all__ = ["Group", "ImageRows", "TokenSequence"]


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


class TokenSequence:
    """Ids, and the context positions that they take.

    Args:
        links: super-link table by id of its routing token.
        names: name by id of the routing tokens.
        im_patch: id whose embedding an image row replaces.
        image: the picture of this conversation, if it has one.
    """

    def __init__(
        self,
        *,
        links: Mapping[int, SuperLink],
        names: Mapping[int, str],
        im_patch: int,
        image: ImageRows | None = None,
    ) -> None:
        """Start empty."""
        self._links = links
        self._names = names
        self._im_patch = im_patch
        self.image = image
        self.ids: list[int] = []
        self.groups: list[Group] = []
        # One entry per context position: the id, or -1 - r for row r of the group before it.
        self.keys: list[int] = []

    def __len__(self) -> int:
        """Context positions taken."""
        return len(self.keys)

    def cost(self, ids: Iterable[int]) -> int:
        """Positions that these ids would take."""
        return sum(1 + (len(self._links[i].rows_ND) if i in self._links else 0) for i in ids)

    def append(self, ids: Iterable[int]) -> list[Group]:
        """Add ids; every routing token brings its rows along. Returns the new groups."""
        first = len(self.groups)
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
            self.keys.append(token)
            if link is not None:
                self.keys.extend(range(-1, -1 - len(link.rows_ND), -1))
        return self.groups[first:]

    def copy(self) -> TokenSequence:
        """A sequence of its own with the same content; the image rows are shared."""
        other = TokenSequence(
            links=self._links, names=self._names, im_patch=self._im_patch, image=self.image
        )
        other.ids, other.groups, other.keys = list(self.ids), list(self.groups), list(self.keys)
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
