"""Public benchmark files, read by path; none is part of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.readers.image_attacks import read_figstep, read_mm_safetybench
from safesteer_edge.evaluation.readers.jsonl import read_jsonl
from safesteer_edge.evaluation.readers.question_json import read_mm_vet, read_science_qa
from safesteer_edge.evaluation.readers.request_tables import (
    read_advbench,
    read_harmbench,
    read_jailbreakbench,
    read_malicious_instruct,
    read_xstest,
)
from safesteer_edge.evaluation.suites.case import PictureStore, Suite

Reader = Callable[[Path, PictureStore], Suite]
READERS: Final[Mapping[str, Reader]] = {
    "advbench": read_advbench,
    "harmbench": read_harmbench,
    "jailbreakbench": read_jailbreakbench,
    "maliciousinstruct": read_malicious_instruct,
    "xstest": read_xstest,
    "figstep": read_figstep,
    "mm-safetybench": read_mm_safetybench,
    "mm-vet": read_mm_vet,
    "scienceqa": read_science_qa,
    "jsonl": read_jsonl,
}


@dataclass(frozen=True, slots=True)
class FileChoice:
    """A file and its format, one of READERS."""

    format: str
    path: Path


def parse_file_choice(text: str) -> FileChoice:
    """`FORMAT=PATH`. Raises SettingsError."""
    name, separator, path = text.partition("=")
    if not separator or not path or name not in READERS:
        raise SettingsError(
            f"cannot read {text!r} as FORMAT=PATH; formats are {', '.join(READERS)}"
        )
    return FileChoice(name, Path(path).expanduser())


def read_suite(choice: FileChoice, pictures: PictureStore) -> Suite:
    """The cases of a file. Rows that make none are listed in it; nothing is dropped.

    Raises RequestDataError for a file that cannot be read, or is none of its format.
    """
    return READERS[choice.format](choice.path, pictures)
