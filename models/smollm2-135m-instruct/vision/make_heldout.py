"""Write the held-out images that the model is measured on, with their manifest.

    python make_heldout.py --icons DIR

Texts: sentences of the requests' test split in fonts of held-out families. Pictures: the held-out
drawing of a name (see `icons.Icon.split`). Neither was seen in training. The images are JPEG, as
people send them. `safesteer-edge measure pictures` reads the folder.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from fonts import find_fonts
from icons import load_icons, picture
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
    options = parser.parse_args()
    rng = random.Random(20_260_511)
    FOLDER.mkdir(exist_ok=True)
    rows = [*_texts(rng), *_pictures(rng, options.icons)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (FOLDER / "manifest.jsonl").write_text("".join(lines), "utf-8")
    print(f"wrote {len(rows)} images to {FOLDER}")


def _texts(rng: random.Random) -> list[dict[str, object]]:
    source, fonts = TextSource("test"), find_fonts("test")
    rows: list[dict[str, object]] = []
    for index, sentence in enumerate(rng.sample(source.sentences, N_TEXTS)):
        text = " ".join(sentence.split()[:MAX_WORDS])
        name = f"text-{index:03d}.jpg"
        image = render(text, rng.choice(fonts), rng)
        Image.fromarray(image.pixels).save(FOLDER / name, quality=JPEG_QUALITY)
        rows.append({"image": name, "kind": "text", "expected": text})
    return rows


def _pictures(rng: random.Random, icons_folder: Path) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        icons = load_icons(icons_folder, Path(folder) / "icons.npz")
    held_out = [icon for icon in icons if icon.split == "test"]
    rows: list[dict[str, object]] = []
    for index, icon in enumerate(rng.sample(held_out, min(N_PICTURES, len(held_out)))):
        name = f"picture-{index:03d}.jpg"
        pixels = picture(icon, rng, plain=True)
        Image.fromarray(pixels).save(FOLDER / name, quality=JPEG_QUALITY)
        # A cat is a right name for a black cat.
        names = list(dict.fromkeys((icon.name, icon.name.split()[-1])))
        rows.append({"image": name, "kind": "name", "expected": names, "source": icon.icon_set})
    return rows


if __name__ == "__main__":
    main()
