"""Encoded media by their content, up to a number of bytes: what a projector need not do again."""

from __future__ import annotations

from collections import OrderedDict

from safesteer_edge.engine.prompt_items import MediaRun, PromptItem


class MediaCache:
    """Prompt items of images and sounds, the least recently used dropped first.

    It belongs to one projector. The key is a hash of the prepared pixels or samples, so that the
    same file prepared in another way is another entry.
    """

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of embeddings; the entry used last stays even if it is larger."""
        self._max_bytes = max_bytes
        self._items_by_key: OrderedDict[str, tuple[PromptItem, ...]] = OrderedDict()

    def get(self, key: str) -> tuple[PromptItem, ...] | None:
        """The items of this content, if they are still there."""
        items = self._items_by_key.get(key)
        if items is not None:
            self._items_by_key.move_to_end(key)
        return items

    def put(self, key: str, items: tuple[PromptItem, ...]) -> None:
        """Keep the items of this content, and drop what no longer fits."""
        self._items_by_key[key] = items
        while len(self._items_by_key) > 1 and self.n_bytes > self._max_bytes:
            self._items_by_key.popitem(last=False)

    def clear(self) -> None:
        """Forget everything, and free its native chunks."""
        self._items_by_key.clear()

    @property
    def n_bytes(self) -> int:
        """Bytes of embeddings in the cache."""
        return sum(
            item.embeddings.nbytes
            for items in self._items_by_key.values()
            for item in items
            if isinstance(item, MediaRun)
        )
