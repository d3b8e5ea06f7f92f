"""Files of cases: public benchmarks, read by path and none part of this package, and a user's own.

They come from anyone: what is read of them is bounded, and a row that makes no case is listed with
the reason, never dropped.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, cast

from safesteer_edge.errors import MediaError, RequestDataError, SettingsError
from safesteer_edge.evaluation.case import (
    CASE_KINDS,
    IN_THE_PICTURE,
    IN_WORDS,
    NO_ATTACK,
    Case,
    CaseKind,
    PictureStore,
    Suite,
    UnreadableRow,
    safe_id,
)
from safesteer_edge.evaluation.case_rows import (
    Row,
    RowError,
    Rows,
    csv_rows,
    entries_of,
    file_name,
    image_at,
    lines_of,
    prompt_of,
    text_of,
    texts_of,
)
from safesteer_edge.requests.pictures import CARRIER, figstep_page
from safesteer_edge.requests.requests import lot_of


@dataclass(frozen=True, slots=True)
class FileChoice:
    """A file and its format, one of FORMATS; or PAPER and a folder."""

    format: str
    path: Path


def parse_file_choice(text: str) -> FileChoice:
    """`FORMAT=PATH`. Raises SettingsError."""
    name, separator, path = text.partition("=")
    if not separator or not path or name not in (*FORMATS, PAPER):
        raise SettingsError(
            f"cannot read {text!r} as FORMAT=PATH; formats are {', '.join((*FORMATS, PAPER))}"
        )
    return FileChoice(name, Path(path).expanduser())


# SafeSteer's own benchmarks (arXiv 2605.11716): the format of each, and its files, as published and
# wherever they lie in a folder of its name; of several kinds, the first that is there.
PAPER: Final = "paper"
_BENCHMARKS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "MM-SafetyBench": ("mm-safetybench", ("processed_questions/*.json",)),
    "FigStep": ("figstep", ("safebench.csv", "SafeBench-Tiny.csv")),
    "VLGuard": ("vlguard", ("test.json",)),
}


def read_suites(choice: FileChoice, pictures: PictureStore) -> tuple[list[Suite], dict[str, str]]:
    """The suite of a file, or those of a folder of the paper's benchmarks.

    Benchmarks that are not there are named, with the reason.
    Raises as `read_suite`, and RequestDataError for a folder without any.
    """
    if choice.format != PAPER:
        return [read_suite(choice, pictures)], {}
    suites: list[Suite] = []
    missing: dict[str, str] = {}
    for name, (file_format, patterns) in _BENCHMARKS.items():
        root = choice.path / name
        found = next((paths for each in patterns if (paths := sorted(root.rglob(each)))), [])
        if found:
            suites.append(_suite_of(file_format, name, found, pictures))
        else:
            missing[name] = f"there is no {' or '.join(patterns)} in {str(root)!r}"
    if not suites:
        raise RequestDataError(
            f"{str(choice.path)!r} holds none of the folders {', '.join(_BENCHMARKS)} with their "
            "files; see docs/evaluation-defences.md for what goes where"
        )
    return suites, missing


def read_suite(choice: FileChoice, pictures: PictureStore) -> Suite:
    """The cases of a file. Rows that make none are listed in it; nothing is dropped.

    Raises RequestDataError for a file that cannot be read, has no rows or is none of its format.
    """
    name = f"{choice.format}:{choice.path.stem}"
    return _suite_of(choice.format, name, [choice.path], pictures)


def _suite_of(file_format: str, name: str, paths: Sequence[Path], pictures: PictureStore) -> Suite:
    rows, make_case = FORMATS[file_format]
    cases: dict[str, Case] = {}
    unreadable: list[UnreadableRow] = []
    for path in paths:
        for where, row in rows(path):
            try:
                case = make_case(_Place(path, name, where, pictures), row)
                if case is not None and cases.setdefault(case.id, case) is not case:
                    raise RowError(f"id {case.id!r} is there twice")
            except (RowError, MediaError) as error:
                place = where if len(paths) == 1 else f"{path.name}, {where}"
                unreadable.append(UnreadableRow(name, place, str(error)))
    if not cases and not unreadable:
        what = ", ".join(repr(str(path)) for path in paths)
        raise RequestDataError(f"cannot use {what}: it has no rows that can be asked")
    source = ", ".join(path.name for path in paths)
    return Suite(name, source, tuple(cases.values()), tuple(unreadable))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row is, for the case that is made of it."""

    path: Path
    suite: str
    where: str
    pictures: PictureStore

    def plain(self, text: str, category: str, kind: CaseKind = "harmful") -> Case:
        """A request in text that has no id of its own."""
        return Case(safe_id(self.where), self.suite, kind, category, text, (text,))


# -- lists of requests in text: AdvBench, HarmBench, JailbreakBench, MaliciousInstruct, XSTest -----

_CONTRAST: Final = "contrast_"  # in XSTest's older files, what an unsafe prompt's type begins with


def _harmbench(at: _Place, row: Row) -> Case:
    """A context string comes before its behaviour, as in the paper."""
    behaviour = text_of(row, "Behavior")
    context = text_of(row, "ContextString", default="")
    asked = f"{context}\n\n---\n\n{behaviour}" if context else behaviour
    category = text_of(row, "SemanticCategory", default="") or "other"
    case_id = safe_id(row["BehaviorID"] or at.where)
    return Case(case_id, at.suite, "harmful", category, behaviour, (asked,))


def _jailbreakbench(at: _Place, row: Row) -> Case:
    """A file with `benign` in its name has harmless requests."""
    kind: CaseKind = "borderline" if "benign" in at.path.stem.lower() else "harmful"
    category = text_of(row, "Category", default="") or "other"
    return at.plain(text_of(row, "Goal"), category, kind)


def _xstest(at: _Place, row: Row) -> Case:
    """Safe prompts that sound unsafe, and unsafe contrasts."""
    label = text_of(row, "label").lower()
    if label not in ("safe", "unsafe"):
        label = "unsafe" if label.startswith(_CONTRAST) else "safe"
    kind: CaseKind = "borderline" if label == "safe" else "harmful"
    return at.plain(text_of(row, "prompt"), text_of(row, "type"), kind)


def _jailbreak_prompt(at: _Place, line: Row) -> Case:
    """JailbreakBench's attack artifacts, one JSON object a line: what is wanted, and the attack.

    The file's name says which attack it is: `jbb_pair_vicuna.jsonl` is of PAIR.
    """
    row = _object(line)
    attack = next((a for a in ("pair", "gcg") if a in at.path.stem.lower()), at.path.stem)
    goal, text = text_of(row, "goal"), text_of(row, "text")
    return Case(
        safe_id(at.where), at.suite, "harmful", "jailbreak", goal, (text,), attack=safe_id(attack)
    )


def _prompt(at: _Place, line: Row, *, kind: CaseKind) -> Case:
    """A prompt a line (`prompt_of`); its kind of danger or of harmlessness under `kind`."""
    row = _object(line)
    return at.plain(prompt_of(row), text_of(row, "kind", default="") or "other", kind)


# -- attacks that come as pictures: FigStep's SafeBench, MM-SafetyBench, VLGuard and MSTS ----------

# MM-SafetyBench's three pictures of one question, and the question that goes with each.
_MM_FORMS: Final[Mapping[str, tuple[str, str]]] = {
    "sd": ("SD", "Rephrased Question(SD)"),
    "sd-typo": ("SD_TYPO", "Rephrased Question"),
    "typo": ("TYPO", "Rephrased Question"),
}


def _figstep_rows(path: Path) -> Rows:
    """Each row with the folders that images may be in; none if no image is there at all."""
    names = ("category_id", "task_id", "category_name", "question", "instruction")
    roots = (path.parent / "images", path.parent.parent / "images")
    folders = (path.parent, *(at / sub for at in roots for sub in ("", "SafeBench", path.stem)))
    has_images = any(next(f.glob("query_ForbidQI_*.png"), None) for f in folders if f.is_dir())
    for where, row in csv_rows(path, [(name,) for name in names]):
        yield where, {**row, "_folders": folders if has_images else ()}


def _figstep(at: _Place, row: Row) -> Case:
    """SafeBench (or SafeBench-Tiny): its own images beside the file, or where they are published.

    If none of them is there, all are drawn here from the instructions. If some are, a row whose
    image is missing makes no case.
    """
    task = safe_id(f"{text_of(row, 'category_id')}_{text_of(row, 'task_id')}")
    if row["_folders"]:
        image = image_at(*(folder / f"query_ForbidQI_{task}_6.png" for folder in row["_folders"]))
    else:
        image = at.pictures.add(figstep_page(text_of(row, "instruction")))
    return Case(
        task,
        at.suite,
        "harmful",
        text_of(row, "category_name"),
        text_of(row, "question"),
        (CARRIER,),
        attack="figstep",
        image=image,
    )


def _mm_safetybench_rows(path: Path) -> Rows:
    for where, row in entries_of(path):
        for attack, (folder, _) in _MM_FORMS.items():
            yield f"{where}, {folder}", {**row, "_attack": attack}


def _mm_safetybench(at: _Place, row: Row) -> Case:
    """One scenario's JSON; images in `../imgs/SCENARIO/{SD,SD_TYPO,TYPO}/`."""
    scenario, name, attack = at.path.stem, safe_id(row["_name"]), row["_attack"]
    folder, key = _MM_FORMS[attack]
    roots = (at.path.parent.parent, at.path.parent)
    group = f"{safe_id(scenario)}/{name}"
    return Case(
        f"{group}/{attack}",
        at.suite,
        "harmful",
        scenario,
        text_of(row, "Question"),
        (text_of(row, key),),
        attack=attack,
        image=image_at(*(root / "imgs" / scenario / folder / f"{name}.jpg" for root in roots)),
        group=group,
    )


# What VLGuard asks about a picture, by the key that it stands under: the attack, and its kind.
_VLGUARD_FORMS: Final[Mapping[str, tuple[str, CaseKind]]] = {
    "instruction": ("unsafe-image", "harmful"),
    "unsafe_instruction": ("unsafe-instruction", "harmful"),
    "safe_instruction": (NO_ATTACK, "benign"),
}


def _vlguard_rows(path: Path) -> Rows:
    """Each of the one or two instructions about each picture."""
    for where, row in entries_of(path):
        asked = row.get("instr-resp")
        for each in cast("list[object]", asked) if isinstance(asked, list) else ():
            given = cast("Row", each) if isinstance(each, dict) else {}
            key = next((key for key in _VLGUARD_FORMS if key in given), "instruction")
            yield f"{where}, {key}", {**row, "_key": key, key: given.get(key)}
        if not isinstance(asked, list) or not asked:
            yield where, {"_problem": "no instructions under 'instr-resp'", **row}


def _vlguard(at: _Place, row: Row) -> Case:
    """test.json, images in `test/` beside it."""
    key = row.get("_key", "")
    text = text_of(row, key)
    attack, kind = _VLGUARD_FORMS[key]
    if row.get("safe") is not (key != "instruction"):
        raise RowError(f"'safe' is {row.get('safe')!r} beside {key!r}")
    image = file_name(row, "image", in_folders=True)
    return Case(
        f"{safe_id(row['_name'])}/{key}",
        at.suite,
        kind,
        text_of(row, "harmful_category", default="") or "other",
        text,
        (text,),
        attack=attack,
        image=image_at(at.path.parent / "test" / image, at.path.parent / image),
    )


_MSTS_COLUMNS: Final = ("prompt_id", "prompt_text", "unsafe_image_description", "hazard_category")


def _msts_rows(path: Path) -> Rows:
    """Each prompt twice: in words alone, from the file of the other name beside it, and about a
    picture."""
    beside = path.with_name(path.name.replace("multimodal", "textonly"))
    columns = [(name,) for name in _MSTS_COLUMNS]
    in_words = {row.get("prompt_id"): row for _, row in csv_rows(beside, columns)}
    for where, row in csv_rows(path, columns):
        named = in_words.get(row.get("prompt_id"), {}).get("prompt_text")
        for attack in (IN_WORDS, IN_THE_PICTURE):
            yield f"{where}, {attack}", {**row, "_attack": attack, "_named": named}


def _msts(at: _Place, row: Row) -> Case | None:
    """MSTS's English prompts (arXiv 2501.10057) about one thing of which there is a drawing.

    The photographs are not published with the prompts. "Kitchen knife" is taken for a knife; what
    takes more words is not one thing, and passed over.
    """
    description, attack = text_of(row, "unsafe_image_description"), row["_attack"]
    words = description.lower().split()
    things, whole = at.pictures.things, " ".join(words)
    thing = whole if whole in things else words[-1]
    if (len(words) > 2 and thing != whole) or thing not in things:
        return None
    name, text, named = (text_of(row, key) for key in ("prompt_id", "prompt_text", "_named"))
    shown = things[thing]
    is_shown = attack == IN_THE_PICTURE
    return Case(
        f"{safe_id(name)}/{attack}",
        at.suite,
        "harmful",
        text_of(row, "hazard_category"),
        named,
        (text if is_shown else named,),
        attack=attack,
        image=shown[lot_of(name) % len(shown)] if is_shown else None,
        group=safe_id(name),
    )


# -- questions with answers, for helpfulness: MM-Vet and ScienceQA ---------------------------------

_OR: Final = "<OR>"
_LETTERS: Final = "ABCDEFGHIJ"


def _mm_vet(at: _Place, row: Row) -> Case:
    """mm-vet.json, images in `images/` beside it.

    Its answers are words joined by <AND> and <OR>; an answer counts as right here if it holds the
    words, where MM-Vet's own score is a language model's from 0 to 1: lower bounds of it.
    """
    question, needed = text_of(row, "question"), row.get("capability")
    capabilities = map(str, cast("list[object]", needed)) if isinstance(needed, list) else ()
    return Case(
        safe_id(row["_name"]),
        at.suite,
        "benign",
        "+".join(sorted(capabilities)) or "other",
        question,
        (question,),
        image=image_at(at.path.parent / "images" / file_name(row, "imagename")),
        expected=tuple(part.strip() for part in text_of(row, "answer").split(_OR)),
    )


def _science_qa(at: _Place, row: Row) -> Case | None:
    """problems.json (its test split, where it has splits), images in `images/SPLIT/ID/`."""
    split, name = text_of(row, "split", default="test"), safe_id(row["_name"])
    if split != "test":
        return None
    question, choices = text_of(row, "question"), _choices(row)
    hint = text_of(row, "hint", default="")
    listed = "\n".join(f"{_LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
    text = "\n".join(part for part in (hint, question, listed) if part)
    image, answer = None, row.get("answer")
    if row.get("image") not in (None, ""):
        inside = Path(split, name, file_name(row, "image"))
        image = image_at(at.path.parent / "images" / inside, at.path.parent / inside)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise RowError(f"'answer' is {answer!r}, not the index of a choice")
    return Case(
        name,
        at.suite,
        "benign",
        text_of(row, "subject", default="") or "science",
        question,
        (f"{text}\nAnswer with the letter of the right choice.",),
        image=image,
        expected=(choices[answer],),
        choices=choices,
    )


def _choices(row: Row) -> tuple[str, ...]:
    value = row.get("choices")
    items = cast("list[object]", value) if isinstance(value, list) else []
    choices = tuple(item for item in items if isinstance(item, str) and item.strip())
    if not 2 <= len(choices) <= len(_LETTERS) or len(choices) != len(items):
        raise RowError(f"'choices' must be 2 to {len(_LETTERS)} texts")
    return choices


# -- a user's own cases, one JSON object a line ----------------------------------------------------
# {"request": …, "kind": "harmful" | "borderline" | "benign"}, and if wanted the other keys: turns
# (texts, the last one counts), image (a path beside the file), expected (answers that are right).

_TEXT_KEYS: Final = ("request", "kind", "id", "category", "attack", "image", "answer_prefix")
_KEYS: Final = (*_TEXT_KEYS, "group", "turns", "expected", "choices")


def _object(line: Row) -> Row:
    """The JSON object of a line. Raises RowError if it is none."""
    try:
        value: object = json.loads(line["line"])
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RowError("not a JSON object")
    return cast("Row", value)


def _own_case(at: _Place, line: Row) -> Case:
    row = _object(line)
    for key in row:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RowError(f"unknown key {key[:40]!r}{hint}")
    kinds: list[CaseKind] = [kind for kind in CASE_KINDS if kind == row.get("kind")]
    if not kinds:
        raise RowError(f"'kind' is {str(row.get('kind'))[:40]!r}; expected one of {CASE_KINDS}")
    request, image = text_of(row, "request"), text_of(row, "image", default="")
    return Case(
        id=safe_id(text_of(row, "id", default=at.where)),
        suite=at.suite,
        kind=kinds[0],
        category=text_of(row, "category", default="") or "all",
        request=request,
        turns=texts_of(row, "turns") or (request,),
        attack=text_of(row, "attack", default="") or NO_ATTACK,
        image=image_at(at.path.parent / image) if image else None,
        given_text=text_of(row, "answer_prefix", default=""),
        group=text_of(row, "group", default="") or None,
        expected=texts_of(row, "expected"),
        choices=texts_of(row, "choices"),
    )


# How a format's files are cut into rows, and what a row becomes; None: it is to be passed over.
FORMATS: Final[
    Mapping[str, tuple[Callable[[Path], Rows], Callable[[_Place, Row], Case | None]]]
] = {
    "advbench": (
        # The latter as HarmBench packages it.
        partial(csv_rows, columns=[("goal", "Behavior")]),
        lambda at, row: at.plain(text_of(row, "goal"), "advbench"),
    ),
    "harmbench": (
        partial(
            csv_rows,
            columns=[("Behavior",), ("SemanticCategory",), ("ContextString",), ("BehaviorID",)],
        ),
        _harmbench,
    ),
    "jailbreakbench": (
        partial(csv_rows, columns=[("Goal", "goal"), ("Category", "category")]),
        _jailbreakbench,
    ),
    "jailbreak-prompts": (lines_of, _jailbreak_prompt),
    "harmful-prompts": (lines_of, partial(_prompt, kind="harmful")),
    "borderline-prompts": (lines_of, partial(_prompt, kind="borderline")),
    "ordinary-prompts": (lines_of, partial(_prompt, kind="benign")),
    "maliciousinstruct": (lines_of, lambda at, row: at.plain(text_of(row, "line"), "malicious")),
    "xstest": (
        partial(csv_rows, columns=[("prompt",), ("type",), ("label", "type")]),
        _xstest,
    ),
    "figstep": (_figstep_rows, _figstep),
    "mm-safetybench": (_mm_safetybench_rows, _mm_safetybench),
    "vlguard": (_vlguard_rows, _vlguard),
    "msts": (_msts_rows, _msts),
    "mm-vet": (entries_of, _mm_vet),
    "scienceqa": (entries_of, _science_qa),
    "jsonl": (lines_of, _own_case),
}
