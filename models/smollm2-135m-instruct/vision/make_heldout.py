"""Write the held-out images that the model is measured on, with their manifest.

    python make_heldout.py --icons DIR
    python make_heldout.py --icons DIR --things things.txt --folder heldout

The second is of a closed world: every listed thing in the two styles of emoji that were held out,
or in what else of it was, and no texts. Texts: sentences of the requests' test split in fonts of
held-out families. Pictures: the held-out drawing of a name (see `icons.load_icons`). Neither was
seen in training. The images are JPEG, as people send them. `safesteer-edge measure pictures` reads
the folder.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from fonts import find_fonts
from icons import HELD_OUT_STYLES, TRAINED_STYLES, Icon, load_icons, picture
from PIL import Image
from sentences import TextSource
from text_images import render

FOLDER = Path(__file__).parent / "heldout"
N_TEXTS = 100
N_PICTURES = 200
MAX_WORDS = 10
JPEG_QUALITY = 90


def main() -> None:
    """Draw them all, the same ones each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--icons", type=Path, required=True, help="folder of the unpacked icon sets"
    )
    parser.add_argument("--things", type=Path, help="list of the only things that are drawn")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--trained", nargs="*", help="trained drawings of these things, instead")
    options = parser.parse_args()
    rng = random.Random(20_260_511)
    options.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        icons = load_icons(options.icons, Path(folder) / "icons.npz", options.things)
    wanted = "train" if options.trained else "test"
    held_out = [icon for icon in icons if icon.split == wanted]
    if options.trained:
        rows, chosen = [], [i for i in _each_thing(held_out) if i.name in options.trained]
    elif options.things is None:
        rows = _texts(rng, options.folder)
        chosen = rng.sample(held_out, min(N_PICTURES, len(held_out)))
    else:
        rows, chosen = [], _each_thing(held_out)
    rows += _pictures(rng, chosen, options.folder)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (options.folder / "manifest.jsonl").write_text("".join(lines), "utf-8")
    print(f"wrote {len(rows)} images to {options.folder}")


def _each_thing(held_out: list[Icon]) -> list[Icon]:
    """Two drawings of each thing, the first of the set where it has several."""
    chosen: dict[str, dict[str, Icon]] = {}
    order = ("noto", "twemoji", *HELD_OUT_STYLES, *TRAINED_STYLES)
    for icon in sorted(held_out, key=lambda icon: order.index(icon.icon_set)):
        of_thing = chosen.setdefault(icon.name, {})
        if len(of_thing) < 2:
            of_thing.setdefault(icon.icon_set, icon)
    return [icon for of_thing in chosen.values() for icon in of_thing.values()]


def _texts(rng: random.Random, folder: Path) -> list[dict[str, object]]:
    source, fonts = TextSource("test"), find_fonts("test")
    rows: list[dict[str, object]] = []
    for index, sentence in enumerate(rng.sample(source.sentences, N_TEXTS)):
        text = " ".join(sentence.split()[:MAX_WORDS])
        name = f"text-{index:03d}.jpg"
        image = render(text, rng.choice(fonts), rng)
        Image.fromarray(image.pixels).save(folder / name, quality=JPEG_QUALITY)
        rows.append({"image": name, "kind": "text", "expected": text})
    return rows


def _pictures(rng: random.Random, icons: list[Icon], folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index, icon in enumerate(icons):
        name = f"picture-{index:03d}.jpg"
        pixels = picture(icon, rng, plain=True)
        Image.fromarray(pixels).save(folder / name, quality=JPEG_QUALITY)
        # A cat is a right name for a black cat, and so are knives for a knife.
        last = icon.name.split()[-1]
        names = list(dict.fromkeys((icon.name, last, _plural(last))))
        rows.append({"image": name, "kind": "name", "expected": names, "source": icon.icon_set})
    return rows


def _plural(word: str) -> str:
    """The plural that is more than an s at its end, else with that."""
    if word.endswith(("fe", "rf")):
        return word.removesuffix("e")[:-1] + "ves"
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return {"mouse": "mice", "tomato": "tomatoes", "potato": "potatoes"}.get(word, word + "s")


if __name__ == "__main__":
    main()
