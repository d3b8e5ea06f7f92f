"""Questions about images and the token ids around them, as the runtime's template lays them out."""

from __future__ import annotations

from dataclasses import dataclass

from safesteer_edge.engine.model import NativeModel

IMAGE_BEGIN, IMAGE_END = "<img>", "</img>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
READING = (
    "What does the text say?",
    "What does the text in the image say?",
    "Read the text.",
    "What is written here?",
    "What does the sign say?",
    "Please read what is written in the picture.",
    "Transcribe the text in the image.",
)
NAMING = (
    "What is in the picture?",
    "What is this?",
    "What does the image show?",
    "What do you see?",
    "What is shown here?",
    "Describe the picture.",
    "Name the thing in the image.",
)


@dataclass(frozen=True, slots=True)
class Frame:
    """Token ids before the image, between image and answer, and of the answer with its end."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    answer: tuple[int, ...]


def frame(tokens: NativeModel, question: str, answer: str) -> Frame:
    """Lay out one question about one image in SmolLM2's chat template."""

    def control(text: str) -> list[int]:
        return tokens.tokenize_trusted(text)

    plain = tokens.tokenize_plain
    before = [
        *control("<|im_start|>"), *plain(f"system\n{SYSTEM}"), *control("<|im_end|>"), *plain("\n"),
        *control("<|im_start|>"), *plain("user\n"), *plain(IMAGE_BEGIN),
    ]  # fmt: skip
    after = [
        *plain(IMAGE_END), *plain(question), *control("<|im_end|>"), *plain("\n"),
        *control("<|im_start|>"), *plain("assistant\n"),
    ]  # fmt: skip
    return Frame(tuple(before), tuple(after), (*plain(answer), *control("<|im_end|>")))
