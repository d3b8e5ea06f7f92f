"""Pictures of common things: seven drawn icon sets, rasterized once, split by picture.

The sets are Iconify's npm packages (`npm pack @iconify-json/noto` …), unpacked into one folder:
noto and noto-v1 (Apache-2.0), fluent-emoji and fluent-emoji-flat (MIT), twemoji and emojione
(CC BY 4.0), openmoji (CC BY-SA 4.0). An icon's name is its caption.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import resvg_py  # pyright: ignore[reportMissingImports]  # the recipe's own extra
from backbone import IMAGE_SIDE
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from wordfreq import (  # pyright: ignore[reportMissingImports]  # the recipe's own extra
    zipf_frequency,
)

ICON_SETS = (
    "noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "twemoji", "emojione", "openmoji",
)  # fmt: skip
HELD_OUT_SETS = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat")  # Apache-2.0 and MIT
# A closed world of listed things has whole styles held out: emoji of two families, and one of those
# that draw in one colour.
TRAINED_STYLES = (
    "fluent-emoji", "fluent-emoji-flat", "emojione", "emojione-v1", "openmoji", "fxemoji",
    "streamline-emojis", "icon-park", "game-icons", "tabler", "ph", "healthicons",
)  # fmt: skip
HELD_OUT_STYLES = ("noto", "noto-v1", "twemoji", "mdi")
_ONE_COLOUR = ("game-icons", "tabler", "ph", "healthicons", "mdi")
_VARIANTS = {"ph": ("", "-fill", "-duotone"), "tabler": ("", "-filled"), "mdi": ("", "-outline")}
_CATEGORIES = ("Animals & Nature", "Food & Drink", "Activities", "Objects", "Travel & Places")
_MIN_SETS = 5
_MIN_ZIPF = 3.0
"""Every word of a name is at least this common in English: once in a million words."""
_RASTER_SIDE = 160


@dataclass(frozen=True, slots=True)
class Icon:
    """name: as people say it. key: in its set. png: RGBA, 160 pixels wide."""

    name: str
    icon_set: str
    key: str
    split: Literal["train", "test"]
    png: bytes


def load_icons(folder: Path, cache: Path, things: Path | None = None) -> list[Icon]:
    """The icons of a list of things, or all with a common name, in order.

    Rasterized into `cache` at the first call (30 s).
    """
    if not cache.exists():
        found = _drawings(folder) if things is None else _listed(folder, things)
        rows = [(*about, _raster(svg)) for *about, svg in found]
        names, sets, keys, splits, pngs = zip(*rows, strict=True)
        partial = cache.with_suffix(".partial")
        np.savez(
            partial.open("wb"),
            names=np.array(names),
            sets=np.array(sets),
            keys=np.array(keys),
            splits=np.array(splits),
            ends=np.cumsum([len(png) for png in pngs]),
            bytes=np.frombuffer(b"".join(pngs), np.uint8),
        )
        partial.replace(cache)
    with np.load(cache, allow_pickle=False) as stored:
        data, ends = stored["bytes"].tobytes(), stored["ends"]
        begins = [0, *ends[:-1]]
        return [
            Icon(
                str(name),
                str(icon_set),
                str(key),
                "test" if split == "test" else "train",
                data[begin:end],
            )
            for name, icon_set, key, split, begin, end in zip(
                stored["names"],
                stored["sets"],
                stored["keys"],
                stored["splits"],
                begins,
                ends,
                strict=True,
            )
        ]


def picture(icon: Icon, rng: random.Random, *, plain: bool = False) -> NDArray[np.uint8]:
    """The icon on some background: uint8 (224, 224, 3). plain: large, centred, on white."""
    drawn = Image.open(io.BytesIO(icon.png)).convert("RGBA")
    if plain:
        paper = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), (255, 255, 255))
        side = round(0.8 * IMAGE_SIDE)
        place = ((IMAGE_SIDE - side) // 2, (IMAGE_SIDE - side) // 2)
    else:
        white = rng.random() < 0.5
        colour = (255, 255, 255) if white else tuple(rng.randint(90, 255) for _ in range(3))
        paper = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), colour)
        if rng.random() < 0.5 and icon.name not in _HANDED:
            drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        drawn = drawn.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=False)
        if icon.icon_set in _ONE_COLOUR:
            ink = Image.new("RGB", drawn.size, tuple(rng.randint(0, 90) for _ in range(3)))
            ink.putalpha(drawn.getchannel("A"))
            drawn = ink
        drawn = ImageEnhance.Color(drawn).enhance(rng.uniform(0.5, 1.4))
        side = round(rng.uniform(0.5, 1.0) * IMAGE_SIDE)
        place = (rng.randint(0, IMAGE_SIDE - side), rng.randint(0, IMAGE_SIDE - side))
    drawn = drawn.resize((side, side), Image.Resampling.BICUBIC)
    paper.paste(drawn, place, drawn)
    return np.asarray(paper)


_HANDED = frozenset({"left arrow", "right arrow"})


def _documents(folder: Path, icon_sets: tuple[str, ...]) -> dict[str, dict]:
    return {
        icon_set: json.loads(
            next(folder.glob(f"**/iconify-json-{icon_set}/package/icons.json")).read_text()
        )
        for icon_set in icon_sets
    }


def _listed(folder: Path, things: Path) -> list[tuple[str, str, str, str, str]]:
    """(name, set, key, split, SVG) of every drawing of the listed things; see `things.txt`."""
    documents = _documents(folder, (*TRAINED_STYLES, *HELD_OUT_STYLES))
    found: list[tuple[str, str, str, str, str]] = []
    for line in things.read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, wanted = line.partition(":")
        seen: set[tuple[str, str]] = set()
        for word in wanted.split():
            where, _, stem = word.removeprefix("!").rpartition(":")
            for icon_set in (where,) if where else documents:
                split = "test" if word[0] == "!" or icon_set in HELD_OUT_STYLES else "train"
                for variant in _VARIANTS.get(icon_set, ("",)):
                    key = stem + variant
                    if key in documents[icon_set]["icons"] and (icon_set, key) not in seen:
                        seen.add((icon_set, key))
                        svg = _svg(documents[icon_set], key)
                        found.append((name, icon_set, key, split, svg))
    return found


def _split_of(name: str, icon_set: str) -> str:
    """One drawing of every name is held out, of a set that may be shipped: a hash says which.

    A name that this set lacks has no held-out drawing.
    """
    held_out = hashlib.sha256(name.encode()).digest()[0] % len(HELD_OUT_SETS)
    return "test" if icon_set == HELD_OUT_SETS[held_out] else "train"


def _drawings(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """(name, set, key, split, SVG) of every icon whose name enough sets share."""
    documents = _documents(folder, ICON_SETS)
    metadata = next(folder.glob("**/iconify-json-noto/package/metadata.json"))
    categories = json.loads(metadata.read_text())["categories"]
    found: list[tuple[str, str, str, str, str]] = []
    for key in sorted({key for category in _CATEGORIES for key in categories[category]}):
        name = key.replace("-", " ").removesuffix(" face")
        having = [icon_set for icon_set in ICON_SETS if key in documents[icon_set]["icons"]]
        if len(having) < _MIN_SETS or not _is_common(name):
            continue
        found += [
            (name, icon_set, key, _split_of(name, icon_set), _svg(documents[icon_set], key))
            for icon_set in having
        ]
    return found


def _is_common(name: str) -> bool:
    words = name.split()
    if len(words) > 2 or words[-1] == "thirty":  # clock faces
        return False
    return all(
        len(word) > 1 and word.isalpha() and zipf_frequency(word, "en") >= _MIN_ZIPF
        for word in words
    )


def _svg(document: dict, key: str) -> str:
    icon = document["icons"][key]
    width = icon.get("width", document.get("width", 16))
    height = icon.get("height", document.get("height", 16))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )


def _raster(svg: str) -> bytes:
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=_RASTER_SIDE))
