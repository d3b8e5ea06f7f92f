"""What the images say: the project's requests, everyday sentences, and words in random order."""

from __future__ import annotations

import random
import re
from pathlib import Path

from image_code import clean_word
from wordfreq import (  # pyright: ignore[reportMissingImports]  # the recipe's own extra
    top_n_list,
    word_frequency,
)

from safesteer_edge.requests.requests import Split, load_requests

N_COMMON_WORDS = 3000
MAX_WORDS = 12
_LIST_FORM = "\n1.\n2.\n3."
_FORTUNES = Path("/usr/share/games/fortunes")


class TextSource:
    """Random texts of a split. Held-out sentences are the requests of the test split."""

    def __init__(self, split: str) -> None:
        splits: tuple[Split, ...] = ("test",) if split == "test" else ("train", "calibration")
        requests = load_requests(splits=splits)
        self.sentences = [request.text for request in requests if request.text.isascii()]
        self.everyday = _everyday_sentences() if split == "train" else []
        self.words = [word for word in top_n_list("en", 2 * N_COMMON_WORDS) if word.isalpha()]
        self.words = [word for word in self.words if word.isascii()][:N_COMMON_WORDS]
        # Flattened: rare words must be learned too, and common ones come in sentences anyway.
        self._weights = [word_frequency(word, "en") ** 0.6 for word in self.words]

    @property
    def vocabulary(self) -> set[str]:
        """Every word that a text may have, as it is coded."""
        spoken = (word for text in self.sentences for word in text.split())
        return {clean_word(word) for word in spoken} | set(self.words) | set("0123456789")

    def draw(self, rng: random.Random, *, max_words: int = MAX_WORDS) -> str:
        """One text: with sentences, quotations and random words in turn, in any case."""
        n_words = rng.randint(1, max_words)
        kind = rng.random()
        text = ""
        if kind < 0.5:
            while len(text.split()) < n_words:  # several sentences fill an image
                from_requests = kind < 0.35 or not self.everyday
                text += " " + rng.choice(self.sentences if from_requests else self.everyday)
        else:
            text = " ".join(rng.choices(self.words, self._weights, k=n_words))
        text = _cut(text.strip(), rng, n_words)
        case = rng.random()
        if case < 0.1:
            text = text.upper()
        elif case < 0.25:
            text = text.lower()
        elif case < 0.35:
            text = text.title()
        elif case < 0.6:
            text = text[:1].upper() + text[1:]
        return text + _LIST_FORM if rng.random() < 0.15 else text


def _cut(text: str, rng: random.Random, max_words: int) -> str:
    """At most so many words, from anywhere within a longer text."""
    words = text.split()
    if len(words) <= max_words:
        return text
    begin = rng.randint(0, len(words) - max_words)
    return " ".join(words[begin : begin + max_words])


def _everyday_sentences() -> list[str]:
    """Sentences of Debian's `fortunes`, where it is installed."""
    texts: list[str] = []
    for path in sorted(_FORTUNES.glob("*")) if _FORTUNES.is_dir() else ():
        if path.suffix:
            continue
        for quote in path.read_text("utf-8", "replace").split("\n%\n"):
            plain = " ".join(quote.split())
            for sentence in re.findall(r"[A-Z][A-Za-z ,';-]{15,90}[.!?]", plain):
                texts.append(sentence)
    return texts
