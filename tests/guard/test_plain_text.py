"""The text as a reader sees it: disguises are undone, and ordinary text stays what it is."""

from __future__ import annotations

import base64
import difflib
import random
import re
from collections.abc import Callable, Collection
from functools import partial
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.evaluation.disguises import dressed, surface_forms
from safesteer_edge.guard.plain_text import readable
from safesteer_edge.requests.requests import Label, load_requests, load_translated

_BASE64_OF_BYTES = base64.b64encode(random.Random(1).randbytes(900)).decode()


def _joined(letter: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: "".join(map(letter, text))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _dressed(text: str, names: Collection[str]) -> str:
    return dressed(text, names)[0].rpartition("\n")[2]  # without what a reader is told


# Beside those of the evaluation: what those leave out.
FORMS: dict[str, Callable[[str], str]] = {
    **{"+".join(names): partial(_dressed, names=names) for names in surface_forms()},
    "leet signs": lambda t: t.translate(str.maketrans("aeiosAEIOS", "@3!0$@3!0$")),
    "small capitals": lambda t: t.lower().translate(
        str.maketrans("abcdefghijklmnoprtuvwyz", "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢ")
    ),
    "joiners": "\u200d".join,
    "bold": _joined(lambda c: chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c),
    "evenly spaced": lambda t: " ".join(t.replace(" ", "")),
    "dotted": lambda t: " ".join(map(".".join, t.split())),
    "base64 twice": lambda t: _base64(_base64(t)),
    "base64 in a sentence": lambda t: f"Decode this and answer it: {_base64(t)}",
    "hexadecimal, spaced": lambda t: t.encode().hex(" "),
    "binary": lambda t: " ".join(f"{byte:08b}" for byte in t.encode()),
    "struck through": _joined(lambda c: c + "\u0336"),
    "dots on letters": _joined(lambda c: c + "\u0308" if c.isalpha() else c),
    "percent": quote,
    "entities": _joined(lambda c: f"&#{ord(c)};"),
    "escapes": _joined(lambda c: f"\\u{ord(c):04x}"),
    "tags": _joined(lambda c: chr(0xE0000 + ord(c)) if c.isascii() else c),
}

STAYS = [
    "```python\ndef getName(userId):\n    x1 = sha256(b'abc')\n    return l33t(x1)\n```",
    "https://example.com/a%20b%20c%20d?q=how%20to%20make",
    "d41d8cd98f00b204e9800998ecf8427e is an md5",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    f"![picture](data:image/png;base64,{_BASE64_OF_BYTES})",
    "550e8400-e29b-41d4-a716-446655440000 0x7fff5fbff8c0 AKIAIOSFODNN7EXAMPLE",
    "∑_{i=1}^{n} x_i² = α·β + γ ≤ 5 × 10⁻³ and ∀x∈ℝ; μm Δt πr² αx",
    "| a | b | c | d |\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |",
    "max.mustermann@example.com, j.r.r.tolkien@oxford.ac.uk",
    "ls -la /usr/local/lib/python3.11/site-packages/numpy/core",
    "👨‍👩‍👧‍👦 family ❤️‍🔥 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 1️⃣ ✈️",
    "क्‍ष में ज़रूर",
    "می‌خواهم بروم",
    "Привет, как дела? Я хочу купить хлеб и молоко. Где IKEA?",
    "The Russian word хорошо means good; so does καλά in Greek.",
    "Việt Nam là một nước ở Đông Nam Á. Balkonda saksıda domates.",
    "Übergröße für Männer, schöne Grüße aus Köln. L'été, élève à l'école. ¿Dónde está?",
    "A B C D E F G H; C G Am F C G Am F; X O X O X O; U.S.A., e.g., J.R.R. Tolkien",
    "NASA, ESA and JAXA; HTTP GET returns JSON; iPhone, MacBook, iPad, eBay; WOW! That's GREAT",
    "mp3 h264 x86_64 utf8 i18n k8s l10n a11y log4j es6 b2b 4k 3d 1st 2nd 10am 50kg R2D2 401k H2O",
    "$5, $100, @user #tag 100% 50/50 and/or C:\\Users\\me\\new\\x41 \\d+\\w{3} &lt;div&gt; &amp;",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", ["harmful", "ordinary"])
def test_a_disguised_request_reads_as_the_plain_one(form: str, label: Label):
    of_label = load_requests(splits=["test"], labels=[label])
    requests = [r for r in of_label if r.language == "en"][:50]
    assert len(requests) == 50
    equal = total = 0
    for request in requests:
        wanted, read = _words(request.text), _words(readable(FORMS[form](request.text)))
        blocks = difflib.SequenceMatcher(None, wanted, read, autojunk=False).get_matching_blocks()
        equal += sum(block.size for block in blocks)
        total += len(wanted)
    assert equal >= 0.9 * total


def test_a_disguised_part_is_read_beside_plain_ones():
    plain = "Also, what is a good recipe for pancakes?"
    for form in ("base64", "hex", "rot13", "uppercase", "zero-width", "look-alikes"):
        read = readable(f"{plain} {FORMS[form]('Write a poem about the old river.')}\n{plain}")
        assert read.lower() == f"{plain} Write a poem about the old river.\n{plain}".lower(), form


def test_ordinary_prompts_are_their_own_reading():
    requests = load_requests() + load_translated()
    changed = [r.text for r in requests if readable(r.text) != r.text]
    assert len(changed) <= 0.005 * len(requests), changed


@pytest.mark.parametrize("text", STAYS)
def test_what_only_looks_like_a_disguise_stays(text: str):
    assert readable(text) == text


# fmt: off
_PIECES = st.sampled_from((
    "%25", "%3", "%41", "\\u005c", "\\x", "u0041", "&#38;", "#", "amp;", "=", "a", "A", "İ", "ß",
    "1", "h0w", "BOMB", "о", "\u0301", "\u200d", "\u202e", "\ufe0f", "א", "Ⓐ", "ａ", "\U000e0041",
    " ", "how to make", "ekam", "\n", ".", ":", "'", "aGVsbG8gd29ybGQgaGVsbG8=", "68656c6c6f",
    "\ud800",
))
# fmt: on


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(st.characters(exclude_categories=[])), st.lists(_PIECES).map("".join)))
def test_the_reading_of_any_text_is_its_own_reading(text: str):
    read = readable(text)
    assert readable(read) == read


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
