"""A prompt as a reader sees it: what hides a text from a guard, undone.

Pure text in, text out; knows nothing of models. Each step changes only what it can make sense of:
what decides is whether English words come out, so prose, code, links and other languages stay as
they are, and their reading is the text itself. Every step takes time linear in the text, and none
makes it longer.

Sources: the words are SCOWL's up to level 35, and those of the package's requests that a guard is
fitted on (not of its test split); look-alikes are Unicode's confusables (UTS 39), single letters
that look like ASCII ones, and small capitals. Both are named in NOTICE.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import functools
import html
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Final
from urllib.parse import unquote

_MAX_ROUNDS: Final = 64  # codes within codes; Base64 within 100,000 characters goes 40 deep
_MIN_SHARE: Final = 0.6  # of a text's letters in known words, so that it counts as English
_MAX_SHARE: Final = 0.3  # … so that it may be something else turned round
_MIN_SHARE_APART: Final = 0.4  # nobody sets many letters apart by chance
_MIN_SHARE_LOUD: Final = 0.7  # SQL's clauses stay loud

_LOOK_ALIKES: Final = (  # each plain letter and what looks like it
    "AΑАᎪᗅꓮ BꞴΒВᏼᗷꓐ CϹⲤСᏟꓚ DᎠᗞᗪꓓ EΕЕⴹᎬꓰ FꞘϜᖴꓝ GԌᏀᏳꓖ HΗⲎНᎻᕼꓧ IΙⲒІӀꓲ JꞲͿЈᎫᒍꓙ KΚⲔКᏦᛕꓗ LⳐᏞᒪꓡ "
    "MΜϺⲘМᎷᗰᛖꓟ NΝⲚꓠ OΟⲞОՕⵔꓳ PΡⲢРᏢᑭꓑ QⵕԚ RƦᎡᏒᖇꓣ SЅՏᏕᏚꓢ TΤⲦТᎢꓔ UՍሀᑌꓴ VѴⴸᏙᐯꓦ WԜᎳᏔꓪ XꭓΧⲬХⵝᚷꓫ "
    "YΥϒⲨУҮᎩᎽꓬ ZΖᏃꓜ aɑαаᴀ bƄЬᏏᑲᖯʙвь cᴄϲⲥсꮯ dԁᏧᑯꓒᴅ eꬲеҽᴇ fꬵꞙẝքꜰ gɡᶃƍցɢ hһհᏂʜн iıɪɩιіꙇӏꭵᎥ "
    "jϳјᴊ kᴋкκ lƖǀⵏᛁʟ mᴍм nոռɴη oᴏᴑꬽοσⲟоჿօ pρϱⲣрᴘ qԛգզ rꭇꭈᴦⲅгꮁʀ sꜱƽѕꮪ tᴛтτ uꞟᴜꭎꭒʋυս vᴠνѵꮩ "
    "wɯᴡѡԝաꮃω xхᕁᕽ yɣᶌʏỿꭚγуүყ zᴢꮓ"
)
_FOLDED: Final = {ord(c): found[0] for found in _LOOK_ALIKES.split() for c in found[1:]}
_FOLDED.update(  # negative circles and squares, which have no compatibility form
    {first + n: chr(97 + n) for first in (0x1F150, 0x1F170) for n in range(26)}
)

# -- characters that nobody sees ------------------------------------------------------------------
_SELECTORS: Final = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_TAGS: Final = "\U000e0000-\U000e007f"
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e"
    f"\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb{_SELECTORS}{_TAGS}]+"
)
# Scripts and pictures that need joiners, and those that need marks of direction.
_JOINING: Final = re.compile("[\u0590-\u1cff\u2190-\u2bff\u3000-\ud7ff\U0001f000-\U0001faff]")
_RIGHT_TO_LEFT: Final = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_DIRECTIONS: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BLACK_FLAG: Final = "\U0001f3f4"  # followed by tags that name a country

# -- letters in another dress ---------------------------------------------------------------------
_STYLED: Final = re.compile(
    "[\u02b0-\u02b8\u1d2c-\u1d6a\u2090-\u209c\u2102-\u2149\u24b6-\u24e9\ufb00-\ufb06"
    "\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7ff\U0001f110-\U0001f149]"
)
_WIDE: Final = re.compile("[\u3000\uff01-\uff5e]")
_CJK: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_MARKS: Final = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20f0\ufe20-\ufe2f"
_MARKED: Final = re.compile(f"(.)([{_MARKS}]+)", re.DOTALL)
_FOREIGN_WORD: Final = re.compile(r"(?<![\w'])[\w']*[^\W\x00-\x7f][\w']*|[\U0001f150-\U0001f189]+")
# Turkish words have a dotless i, mathematics Greek letters.
_WITHIN_WORDS: Final = re.compile("LATIN (?!LETTER SMALL CAPITAL)|GREEK")

# -- codes ----------------------------------------------------------------------------------------
_LINK: Final = re.compile(r"(\b\w{1,20}://\S+|\bdata:\w{1,20}/\S+)")
_ESCAPES: Final = re.compile(
    r"(?P<percent>(?<!%)(?<!%[0-9a-fA-F])(?:%(?:25)*[0-9a-fA-F]{2})+)"
    r"|(?P<entity>&(?:amp;)*#(?:x[0-9a-fA-F]{1,6}|[0-9]{1,7});)"
    r"|\\{1,4}(?:u\{?([0-9a-fA-F]{4,6})\}?|x([0-9a-fA-F]{2}))"
)
_MIN_ESCAPES: Final = 3
_CODED: Final = re.compile(
    r"(?P<binary>\b[01]{8}(?:\s?[01]{8}){3,}\b)"
    r"|(?P<hex>\b(?:0x)?[0-9a-fA-F]{2}(?:[ :,-]{0,2}(?:0x)?[0-9a-fA-F]{2}){5,}\b)"
    r"|(?P<base64>(?<![\w+/=-])(?:[\w+/-]{60,}\r?\n)*[\w+/-]{16,}={0,2}(?![\w+/=]))",
    re.ASCII,
)
_SENTENCE: Final = re.compile(r"([.!?:;\"\n]+)")
_ROT13: Final = {ord(a): codecs.encode(a, "rot13") for a in map(chr, range(128)) if a.isalpha()}

# -- letters apart, and letters as digits ---------------------------------------------------------
_LETTER: Final = r"[A-Za-z0-9@$!](?![A-Za-z0-9@$])"
_GAP: Final = re.compile(r"[ \t._*|/~,'’\-]{1,5}")
_APART: Final = re.compile(
    rf"(?<![\w@$.]){_LETTER}(?:{_GAP.pattern}{_LETTER}){{3,}}(?!\w)", re.ASCII
)
_PARTS: Final = re.compile(r"[\w@$!]+(?:'\w+)?")
_LEET: Final = str.maketrans("013456789@$!|+€", "oieasgtbgasiite")
_AS_L: Final = str.maketrans("1!|", "lll")
_LEET_WORD: Final = re.compile(
    r"(?<![\w@$/#.=&])[\w@$!|+€']{0,30}[0-9@$!|+€][\w@$!|+€']{0,30}(?![/=\w@])"
)
_NUMBER: Final = re.compile(r"\d+[a-z]{1,2}|[a-z]\d\d[a-z]|\d+", re.IGNORECASE)  # "10am", "i18n"
_ENGLISH: Final = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")

# -- capitals -------------------------------------------------------------------------------------
_ANY_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_WITHIN_RUN: Final = re.compile(r"[^,;:\n|]{0,8}")
_SENTENCE_END: Final = re.compile(r"(?:^|[.!?]\s+|\n\s*)[\"'(“]?\Z")


def readable(text: str) -> str:
    """The text without disguise: equal to `text` where there is none; its own reading.

    Undone are styled and look-alike letters, characters that nobody sees, stacked marks, escapes,
    Base64, hexadecimal, binary, ROT13 and reversed text, letters set apart, digits for letters,
    and capitals all over. Never raises. Takes 0.2 ms for a request of 75 characters, and
    some 50 ms more at first, for the words.
    """
    for _ in range(_MAX_ROUNDS):
        read = text
        for step in _STEPS:
            read = step(read)
        if read == text:
            break
        text = read
    return text


def is_english(text: str) -> bool:
    """Whether most of its letters stand in English words; False for fewer than three words."""
    return _share_known(text) >= _MIN_SHARE


@functools.cache
def _words() -> dict[str, float]:
    """What each word costs where letters are cut into words: the less, the commoner (Zipf)."""
    file = resources.files("safesteer_edge.guard") / "plain_text_words.txt"
    words = file.read_text("ascii").split()
    return {word: math.log((rank + 1) * math.log(len(words))) for rank, word in enumerate(words)}


def _is_known(word: str) -> bool:
    stem = word.partition("'")[0]
    return stem in _words() or (len(stem) < len(word) and stem.removesuffix("n") in _words())


def _share_known(text: str) -> float:
    """The share of the letters that stand in English words; 0 where there are too few to tell."""
    found = _ENGLISH.findall(text.lower())
    n_letters = sum(map(len, found))
    if len(found) < 3 or n_letters < 10:
        return 0.0
    return sum(len(word) for word in found if _is_known(word)) / n_letters


def _is_text(text: str) -> bool:
    """Whether decoded characters are text of any language, and not a chance."""
    text = _UNSEEN.sub("", text)
    n_letters = sum(c.isalpha() or c.isspace() or unicodedata.category(c) == "Mn" for c in text)
    seen = all(c.isprintable() or c.isspace() for c in text)
    return len(text) > 2 and seen and 2 * n_letters >= len(text)


def _seen(text: str) -> str:
    return _UNSEEN.sub(_seen_of_run, text)


def _seen_of_run(match: re.Match[str]) -> str:
    run, before = match[0], match.string[match.start() - 1 : match.start()]
    after = match.string[match.end() : match.end() + 1]
    if before == _BLACK_FLAG and len(run) < 9 and "\U000e0020" <= run[0] <= "\U000e007f":
        return run
    tagged = "".join(chr(ord(c) - 0xE0000) for c in run if "\U000e0020" <= c <= "\U000e007e")
    if _is_text(tagged):  # models read them
        return tagged
    kept = ""
    if before and (_JOINING.match(before) or not (before.isalpha() or before.isspace())):
        kept += "".join(c for c in run if "\ufe00" <= c <= "\ufe0f")[:1]
    if before and _JOINING.match(before):
        kept += "".join(c for c in run if c in "\u200c\u200d")[:1]
    if (before and _RIGHT_TO_LEFT.match(before)) or (after and _RIGHT_TO_LEFT.match(after)):
        kept += "".join(_DIRECTIONS.findall(run))[:1]
    return kept


def _undressed(text: str) -> str:
    if text.isascii():
        return text
    if len(_STYLED.findall(text)) >= 3:
        text = _STYLED.sub(lambda m: _ascii_form(m[0]), text)
        if not _CJK.search(text):
            text = _WIDE.sub(lambda m: _ascii_form(m[0]), text)
    return _MARKED.sub(_unmarked, text)


def _ascii_form(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character).strip("()") or character
    return plain if plain.isascii() and len(plain) <= 3 else character


def _unmarked(match: re.Match[str]) -> str:
    base, *marks = unicodedata.normalize("NFD", match[1]) + match[2]
    if ord(base) > 0x52F or (
        base.isdigit() and marks == ["\u20e3"]
    ):  # no script of Europe; a keycap
        return match[0]
    composed = unicodedata.normalize("NFC", "".join([base, *marks]))
    return composed if len(composed) == 1 else base


def _unfolded(text: str) -> str:
    if text.isascii():
        return text
    folded = text.translate(_FOLDED)
    n_foreign = sum(c.isalpha() and not c.isascii() for c in folded)
    n_ascii = sum(c.isalpha() and c.isascii() for c in folded)
    is_latin = n_ascii > 4 * n_foreign
    text = _FOREIGN_WORD.sub(lambda m: _folded_word(m[0], is_latin), text)
    return "".join(map(_unaccented, text.splitlines(keepends=True)))


def _folded_word(word: str, is_latin: bool) -> str:
    folded = word.translate(_FOLDED)
    if folded == word or not folded.isascii():
        return word
    known = _plain_word(folded) is not None
    mixed = any(c.isascii() and c.isalpha() for c in word) or word[0] > "\U0001f000"
    odd = any(not c.isascii() and not _WITHIN_WORDS.match(unicodedata.name(c, "")) for c in word)
    known = known and (odd or len(word) > 1)
    return folded if (mixed and len(word) > 2 and (known or odd)) or (is_latin and known) else word


def _unaccented(line: str) -> str:
    """A line of English with marks on most of its words, without them; else the line."""
    words = _ENGLISH.findall(line)
    accented = [word for word in words if not word.isascii()]
    if 2 * len(accented) < len(words) or len(accented) < 3:
        return line
    split = unicodedata.normalize("NFD", line)
    bare = "".join(c for c in split if not unicodedata.combining(c))
    return bare if _share_known(bare) >= _MIN_SHARE_LOUD else line


def _outside_links(change: Callable[[str], str], text: str) -> str:
    parts = _LINK.split(text)
    return "".join(part if n % 2 else change(part) for n, part in enumerate(parts))


def _unescaped(text: str) -> str:
    if "\\" not in text and "%" not in text and "&" not in text:
        return text
    if sum(max(1, m[0].count("%")) for m in _ESCAPES.finditer(text)) < _MIN_ESCAPES:
        return text
    return _outside_links(lambda part: _ESCAPES.sub(_escaped, part), text)


def _escaped(match: re.Match[str]) -> str:
    if match["percent"]:
        plain = match[0]
        for _ in range(4):  # escapes of escapes
            plain = unquote(plain, errors="replace")
    elif match["entity"]:
        plain = html.unescape(match[0].replace("amp;", ""))
    else:
        code = int(match[3] or match[4], 16)
        plain = chr(code) if code < 0x110000 else ""
    # What would make another escape is left: else each round would undo but one of a chain.
    fine = all((c.isprintable() or c in "\n\t") and c not in "\\&\ufffd" for c in plain)
    return (
        plain if plain and fine and not re.search("%.{0,2}$|%[0-9a-fA-F]{2}", plain) else match[0]
    )


def _decoded(text: str) -> str:
    return _outside_links(lambda part: _CODED.sub(_decoded_run, part), text)


def _decoded_run(match: re.Match[str]) -> str:
    coded = "".join(match[0].split())
    try:
        if match["binary"]:
            raw = int(coded, 2).to_bytes(len(coded) // 8, "big") if len(coded) < 4000 else b""
        elif match["hex"]:
            raw = bytes.fromhex(re.sub("0x|[:,-]", "", coded))
        elif coded.lower() == coded or coded.upper() == coded:
            return match[0]  # a word, a name or a hash
        else:
            coded = coded.rstrip("=").replace("-", "+").replace("_", "/")
            raw = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
        plain = raw.decode("utf-8")
    except (binascii.Error, ValueError):
        return match[0]
    return plain if _is_text(plain) and len(plain) < len(match[0]) else match[0]


def _turned(text: str) -> str:
    lead, colon, rest = text.partition(":")  # "Decode this: …"
    if (
        all(map(_is_known, _ENGLISH.findall(lead.lower())))
        and (turned := _turned_part(rest)) != rest
    ):
        return lead + colon + turned
    if (whole := _turned_part(text)) != text:
        return whole
    lines = "".join(map(_turned_part, text.splitlines(keepends=True)))
    parts = _SENTENCE.split(lines)
    return "".join(map(_turned_part, parts))


def _turned_part(part: str) -> str:
    """A part that is nonsense as it stands and English backwards or in ROT13: as English."""
    if max(_share_known(part), _share_known(part.translate(_LEET))) > _MAX_SHARE:
        return part
    body = part.strip()
    lead, tail = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    turned = (_backwards(body), _rot13(body), _rot13(_backwards(body)))
    shares = [max(_share_known(t), _share_known(t.translate(_LEET))) for t in turned]
    best = max(shares)
    return lead + turned[shares.index(best)] + tail if best >= _MIN_SHARE else part


def _backwards(text: str) -> str:
    return text[::-1]


def _rot13(text: str) -> str:
    return text.translate(_ROT13)


def _joined(text: str) -> str:
    return _APART.sub(_joined_run, text)


def _joined_run(match: re.Match[str]) -> str:
    letters, gaps = re.findall(_LETTER, match[0]), _GAP.findall(match[0])
    usual = max(set(gaps), key=gaps.count)
    joined = letters[0]
    for gap, letter in zip(gaps, letters[1:], strict=True):
        wider = _widest_space(gap) > _widest_space(usual)
        joined += (" " if wider else "" if gap == usual else gap.strip()) + letter
    words = joined.split()
    if len(words) == 1:
        words = _split_words(joined)
    parts = _PARTS.findall(" ".join(words))
    n_letters = sum(map(len, parts))
    known = max(
        sum(len(part) for part in parts if _plain_word(turn(part)))
        for turn in (str, _backwards, _rot13)
    )
    fine = known >= _MIN_SHARE_APART * n_letters and n_letters > 2.4 * len(words)
    return " ".join(words) if fine else match[0]


def _widest_space(gap: str) -> int:
    return max(map(len, re.findall(r"\s*", gap)))


def _split_words(letters: str) -> list[str]:
    """The likeliest words that these letters make; a letter of no word costs more than any."""
    plain, words = letters.lower().translate(_LEET), _words()
    best: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(plain) + 1):
        best.append(
            min(
                (best[at][0] + words.get(plain[at:end], 15.0 * (end - at)), at)
                for at in range(max(0, end - 16), end)
            )
        )
    cut: list[str] = []
    end = len(letters)
    while end:
        start = best[end][1]
        cut.append(letters[start:end])
        end = start
    return cut[::-1]


def _plain_word(word: str) -> str | None:
    """The known word that digits and signs were put into, or that this is; else None."""
    lower = word.lower()
    ones = [n for n, c in enumerate(lower) if c in "1!|"]
    readings: Iterable[str] = (
        lower,
        lower.translate(_LEET),
        lower.translate(_AS_L).translate(_LEET),
    )
    if 1 < len(ones) <= 4:
        readings = itertools.chain(
            readings,
            (
                "".join(
                    choice[ones.index(n)] if n in ones else c for n, c in enumerate(lower)
                ).translate(_LEET)
                for choice in itertools.product("il", repeat=len(ones))
            ),
        )
    return next((each for each in readings if _is_known(each)), None)


def _unleeted(text: str) -> str:
    return "".join(map(_unleeted_line, text.splitlines(keepends=True)))


def _unleeted_line(text: str) -> str:
    found = [(m, *_leet_reading(m[0])) for m in _LEET_WORD.finditer(text)]
    sure = sum(
        len(word) > 3 and not _NUMBER.fullmatch(word) for _, word, plain, _ in found if plain
    )
    if not sure:
        return text
    # Where letters are digits throughout, numbers are words too.
    n_letters, n_vowels = len(re.findall("[a-zA-Z]", text)), len(re.findall("[aeioAEIO]", text))
    throughout = sure > 1 and 5 * n_vowels < n_letters
    pieces: list[str] = []
    at = 0
    for match, word, plain, rest in found:
        number = _NUMBER.fullmatch(word) and word not in ("1", "4")
        if plain and (len(word) > 3 or sure > 1) and (throughout or not number):
            capital = plain == "i" or (word[0].isupper() and word[1:].islower())
            pieces += [text[at : match.start()], plain.capitalize() if capital else plain, rest]
            at = match.end()
    return "".join([*pieces, text[at:]])


def _leet_reading(token: str) -> tuple[str, str | None, str]:
    """A token's word, what it reads as (None: no word), and the signs behind it."""
    for word in (token, token.rstrip("!|+'")):
        if len(word) < 30 and any(not c.isalpha() for c in word) and (plain := _plain_word(word)):
            return word, plain, token[len(word) :]
    return token, None, ""


def _calm(text: str) -> str:
    """Runs of words whose capitals are unusual, in sentence case."""
    pieces: list[str] = []
    at = 0
    for start, end in _loud_runs(text):
        calm = "".join(c.lower() if len(c.lower()) == 1 else c for c in text[start:end])
        calm = re.sub(r"\bi\b", "I", calm)
        calm = re.sub(r"([.!?]\s+)([a-z])", lambda m: m[1] + m[2].upper(), calm)
        if _SENTENCE_END.search(text[max(0, start - 8) : start] if start > 8 else text[:start]):
            calm = calm[:1].upper() + calm[1:]
        pieces += [text[at:start], calm]
        at = end
    return "".join([*pieces, text[at:]])


def _loud_runs(text: str) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    run: list[re.Match[str]] = []
    only_loud = all(m[0].isupper() for m in _ANY_WORD.finditer(text))
    for match in _ANY_WORD.finditer(text):
        word = match[0]
        together = not run or _WITHIN_RUN.fullmatch(text, run[-1].end(), match.start())
        if together and (_is_loud(word) or (len(word) < 3 and (run or not word.islower()))):
            run.append(match)
            continue
        runs += _loud_run(run, only_loud)
        run = [match] if _is_loud(word) else []
    return runs + _loud_run(run, only_loud)


def _loud_run(run: list[re.Match[str]], only_loud: bool) -> list[tuple[int, int]]:
    loud = [m[0] for m in run if _is_loud(m[0])]
    wanted = 2 if only_loud else 3
    letters = sum(map(len, loud))
    known = sum(len(w) for w in loud if not w.isascii() or w.lower().split("'")[0] in _words())
    if len(loud) < wanted or letters < 4 * wanted - 2 or known < _MIN_SHARE_LOUD * letters:
        return []
    return [(run[0].start(), run[-1].end())]


def _is_loud(word: str) -> bool:
    """All capitals, or capitals within: neither "Word" nor "word"; two letters at least."""
    return len(word) > 1 and not word.islower() and word[1:] != word[1:].lower()


_STEPS: Final[tuple[Callable[[str], str], ...]] = (
    _seen,
    _undressed,
    _unfolded,
    _unescaped,
    _decoded,
    _joined,
    _unleeted,
    _turned,
    _calm,
)
