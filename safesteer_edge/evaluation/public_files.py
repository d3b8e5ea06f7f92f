"""Public benchmark files, read by path; none is part of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from safesteer_edge.errors import MediaError, SettingsError
from safesteer_edge.evaluation.case import Case, CaseKind, PictureStore, Suite, safe_id
from safesteer_edge.evaluation.tables_of_cases import (
    RowError,
    SuiteBuilder,
    csv_rows,
    id_at,
    image_at,
    json_entries,
    read_jsonl,
    read_text_file,
    text_of,
)
from safesteer_edge.requests.pictures import CARRIER, figstep_page

# -- lists of requests in text: AdvBench, HarmBench, JailbreakBench, MaliciousInstruct, XSTest -----


def read_advbench(path: Path, _pictures: PictureStore) -> Suite:
    """AdvBench: columns `goal` (or `Behavior`, as HarmBench packages it)."""
    builder = SuiteBuilder(path, "advbench")
    for where, row in csv_rows(path, [("goal", "Behavior")]):
        try:
            text = text_of(row, "goal")
            builder.add(_case(builder.name, where, "harmful", "advbench", text), where)
        except RowError as error:
            builder.fail(where, str(error))
    return builder.suite()


def read_harmbench(path: Path, _pictures: PictureStore) -> Suite:
    """HarmBench's text behaviours; a context string comes before its behaviour, as in the paper."""
    builder = SuiteBuilder(path, "harmbench")
    columns = [("Behavior",), ("SemanticCategory",), ("ContextString",), ("BehaviorID",)]
    for where, row in csv_rows(path, columns):
        try:
            behaviour = text_of(row, "Behavior")
            context = text_of(row, "ContextString", default="")
            asked = f"{context}\n\n---\n\n{behaviour}" if context else behaviour
            category = text_of(row, "SemanticCategory", default="") or "other"
            case_id = id_at(row, "BehaviorID", where)
            builder.add(
                Case(case_id, builder.name, "harmful", category, behaviour, (asked,)), where
            )
        except RowError as error:
            builder.fail(where, str(error))
    return builder.suite()


def read_jailbreakbench(path: Path, _pictures: PictureStore) -> Suite:
    """JBB-Behaviors: columns Goal, Category. A file with `benign` in its name has harmless ones."""
    builder = SuiteBuilder(path, "jailbreakbench")
    kind: CaseKind = "borderline" if "benign" in path.stem.lower() else "harmful"
    for where, row in csv_rows(path, [("Goal", "goal"), ("Category", "category")]):
        try:
            category = text_of(row, "Category", default="") or "other"
            builder.add(_case(builder.name, where, kind, category, text_of(row, "Goal")), where)
        except RowError as error:
            builder.fail(where, str(error))
    return builder.suite()


def read_malicious_instruct(path: Path, _pictures: PictureStore) -> Suite:
    """MaliciousInstruct: a request a line."""
    builder = SuiteBuilder(path, "maliciousinstruct")
    for number, line in enumerate(read_text_file(path).splitlines(), start=1):
        where = f"line {number}"
        try:
            if line.strip():
                text = text_of({"line": line}, "line")
                builder.add(_case(builder.name, where, "harmful", "malicious", text), where)
        except RowError as error:
            builder.fail(where, str(error))
    return builder.suite()


_CONTRAST: Final = "contrast_"  # in older files, what an unsafe prompt's type begins with


def read_xstest(path: Path, _pictures: PictureStore) -> Suite:
    """XSTest: safe prompts that sound unsafe, and unsafe contrasts; columns prompt, type, label."""
    builder = SuiteBuilder(path, "xstest")
    for where, row in csv_rows(path, [("prompt",), ("type",), ("label", "type")]):
        try:
            kind_name = text_of(row, "type")
            label = text_of(row, "label").lower()
            if label not in ("safe", "unsafe"):
                label = "unsafe" if label.startswith(_CONTRAST) else "safe"
            kind: CaseKind = "borderline" if label == "safe" else "harmful"
            text = text_of(row, "prompt")
            builder.add(_case(builder.name, where, kind, kind_name, text), where)
        except RowError as error:
            builder.fail(where, str(error))
    return builder.suite()


def _case(suite: str, where: str, kind: CaseKind, category: str, text: str) -> Case:
    return Case(safe_id(where), suite, kind, category, text, (text,))


# -- attacks that come as pictures: FigStep's SafeBench and MM-SafetyBench -------------------------

_SAFEBENCH_COLUMNS: Final = (
    ("category_id",),
    ("task_id",),
    ("category_name",),
    ("question",),
    ("instruction",),
)
# MM-SafetyBench's three pictures of one question, and the question that goes with each.
_MM_FORMS: Final[Mapping[str, tuple[str, str]]] = {
    "sd": ("SD", "Rephrased Question(SD)"),
    "sd-typo": ("SD_TYPO", "Rephrased Question"),
    "typo": ("TYPO", "Rephrased Question"),
}


def read_figstep(path: Path, pictures: PictureStore) -> Suite:
    """SafeBench (or SafeBench-Tiny): its own images beside the file or below it.

    If none of them is there, all are drawn here from the instructions. If some are, a row whose
    image is missing makes no case.
    """
    builder = SuiteBuilder(path, "figstep")
    rows = list(csv_rows(path, _SAFEBENCH_COLUMNS))
    folders = (path.parent, path.parent / "images", path.parent / "images" / "SafeBench")
    has_images = any(next(f.glob("query_ForbidQI_*.png"), None) for f in folders if f.is_dir())
    for where, row in rows:
        try:
            task = f"{text_of(row, 'category_id')}_{text_of(row, 'task_id')}"
            if has_images:
                name = f"query_ForbidQI_{safe_id(task)}_6.png"
                image = image_at(*(folder / name for folder in folders))
            else:
                image = pictures.add(figstep_page(text_of(row, "instruction")))
            builder.add(
                Case(
                    safe_id(task),
                    builder.name,
                    "harmful",
                    text_of(row, "category_name"),
                    text_of(row, "question"),
                    (CARRIER,),
                    attack="figstep",
                    image=image,
                ),
                where,
            )
        except (RowError, MediaError) as error:
            builder.fail(where, str(error))
    return builder.suite()


def read_mm_safetybench(path: Path, _pictures: PictureStore) -> Suite:
    """One scenario's JSON of MM-SafetyBench; images in `../imgs/SCENARIO/{SD,SD_TYPO,TYPO}/`."""
    builder = SuiteBuilder(path, "mm-safetybench")
    roots = (path.parent.parent / "imgs" / path.stem, path.parent / "imgs" / path.stem)
    for name, entry in json_entries(path):
        for attack, (folder, key) in _MM_FORMS.items():
            where = f"entry {name}, {folder}"
            try:
                file_name = f"{safe_id(name)}.jpg"
                builder.add(
                    Case(
                        f"{safe_id(name)}/{attack}",
                        builder.name,
                        "harmful",
                        path.stem,
                        text_of(entry, "Question"),
                        (text_of(entry, key),),
                        attack=attack,
                        image=image_at(*(root / folder / file_name for root in roots)),
                        group=safe_id(name),
                    ),
                    where,
                )
            except RowError as error:
                builder.fail(where, str(error))
    return builder.suite()


# -- questions with answers, for helpfulness: MM-Vet and ScienceQA ---------------------------------

_OR = "<OR>"
_LETTERS = "ABCDEFGHIJ"


def read_mm_vet(path: Path, _pictures: PictureStore) -> Suite:
    """mm-vet.json, images in `images/` beside it.

    Its answers are words joined by <AND> and <OR>; an answer counts as right here if it holds the
    words, where MM-Vet's own score is a language model's from 0 to 1: lower bounds of it.
    """
    builder = SuiteBuilder(path, "mm-vet")
    for name, entry in json_entries(path):
        try:
            question = text_of(entry, "question")
            builder.add(
                Case(
                    safe_id(name),
                    builder.name,
                    "benign",
                    _capability(entry),
                    question,
                    (question,),
                    image=image_at(path.parent / "images" / _file_name(entry, "imagename")),
                    expected=tuple(part.strip() for part in text_of(entry, "answer").split(_OR)),
                ),
                name,
            )
        except RowError as error:
            builder.fail(f"entry {name}", str(error))
    return builder.suite()


def read_science_qa(path: Path, _pictures: PictureStore) -> Suite:
    """problems.json (its test split, where it has splits), images in `images/SPLIT/ID/`."""
    builder = SuiteBuilder(path, "scienceqa")
    for name, entry in json_entries(path):
        try:
            split = text_of(entry, "split", default="test")
            if split != "test":
                continue
            question, choices = text_of(entry, "question"), _choices(entry)
            hint = text_of(entry, "hint", default="")
            listed = "\n".join(f"{_LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
            text = "\n".join(part for part in (hint, question, listed) if part)
            builder.add(
                Case(
                    safe_id(name),
                    builder.name,
                    "benign",
                    text_of(entry, "subject", default="") or "science",
                    question,
                    (f"{text}\nAnswer with the letter of the right choice.",),
                    image=_science_image(path, name, split, entry),
                    expected=(choices[_answer_index(entry, len(choices))],),
                    choices=choices,
                ),
                name,
            )
        except RowError as error:
            builder.fail(f"entry {name}", str(error))
    return builder.suite()


def _members(entry: object) -> dict[str, object]:
    if not isinstance(entry, dict):
        raise RowError("not an object")
    return cast("dict[str, object]", entry)


def _capability(entry: object) -> str:
    value = _members(entry).get("capability")
    if isinstance(value, list):
        return "+".join(sorted(str(item) for item in cast("list[object]", value))) or "other"
    return "other"


def _file_name(entry: object, key: str) -> str:
    """A file's name that stays in its folder."""
    name = text_of(entry, key)
    if Path(name).name != name:
        raise RowError(f"{key!r} is {name!r}, not a file's name")
    return name


def _choices(entry: object) -> tuple[str, ...]:
    value = _members(entry).get("choices")
    items = cast("list[object]", value) if isinstance(value, list) else []
    choices = tuple(item for item in items if isinstance(item, str) and item.strip())
    if not 2 <= len(choices) <= len(_LETTERS) or len(choices) != len(items):
        raise RowError(f"'choices' must be 2 to {len(_LETTERS)} texts")
    return choices


def _answer_index(entry: object, n_choices: int) -> int:
    value = _members(entry).get("answer")
    if type(value) is not int or not 0 <= value < n_choices:
        raise RowError(f"'answer' is {value!r}, not the index of a choice")
    return value


def _science_image(path: Path, name: str, split: str, entry: object) -> Path | None:
    if _members(entry).get("image") in (None, ""):
        return None
    file_name = _file_name(entry, "image")
    return image_at(
        path.parent / "images" / safe_id(split) / safe_id(name) / file_name,
        path.parent / safe_id(split) / safe_id(name) / file_name,
    )


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
