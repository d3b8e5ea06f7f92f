"""`safesteer-edge measure pictures`: what model and guard see in held-out pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import OK
from safesteer_edge.errors import InputError
from safesteer_edge.processes.cores import n_usable_cores

if TYPE_CHECKING:
    from safesteer_edge.evaluation.picture_skill import (
        PictureAnswer,
        PictureSkill,
        PictureTask,
        ReaderSkill,
    )
    from safesteer_edge.media.image_decoding import ImageFit
    from safesteer_edge.session.settings import SessionSettings


_DEFAULT_DATA = Path("smollm2-135m-instruct/vision/heldout")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the pictures are."""
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with manifest.jsonl (default: our own)"
    )
    group.add_argument(
        "--safebench", type=Path, metavar="DIR", help="FigStep's SafeBench-Tiny as well"
    )
    group.add_argument(
        "--answers", type=Path, metavar="F.jsonl", help="write what was said of each picture"
    )


def measure_pictures(
    settings: SessionSettings,
    options: argparse.Namespace,
    progress: Callable[[int, str], Callable[[int], None]],
) -> int:
    """Measure, print, and return the exit code. progress: takes a number, and of what."""
    # Deferred: they import llama.cpp.
    from safesteer_edge.evaluation.picture_skill import ask_about_pictures, summarise
    from safesteer_edge.media.image_decoding import ImageFit
    from safesteer_edge.session.choice import require_projector
    from safesteer_edge.session.session import open_session

    sets = _read_sets(options)
    projector_info = require_projector(settings, images=True, sounds=False)
    assert projector_info is not None  # or it had raised
    tasks = [task for each in sets.values() for task in each]
    # The reader first: what memory it takes cannot be told beside a model.
    readers = _measure_reader(settings, ImageFit(projector_info.square_side), sets, progress)
    with open_session(settings) as session:
        answers = ask_about_pictures(session, tasks, progress=progress(len(tasks), "pictures"))
        name_of_model = session.info.model_name
    if options.answers is not None:
        _write_answers(options.answers, answers)
    skills: dict[str, PictureSkill] = {}
    for name, each in sets.items():
        skills[name] = summarise(answers[: len(each)])
        answers = answers[len(each) :]
    if options.json:
        print(json.dumps({name: _to_json(skills[name], readers.get(name)) for name in sets}))
        return OK
    print(f"{name_of_model}, guard {settings.guard}, temperature {settings.sampling.temperature:g}")
    for name, skill in skills.items():
        _print_skill(name, skill)
        _print_reader(readers.get(name))
    return OK


def _measure_reader(
    settings: SessionSettings,
    fit: ImageFit,
    sets: dict[str, list[PictureTask]],
    progress: Callable[[int, str], Callable[[int], None]],
) -> dict[str, ReaderSkill]:
    """What the guard's own reader makes of each set, a new one for each; nothing without one."""
    from safesteer_edge.evaluation.picture_skill import measure_reader
    from safesteer_edge.media.picture_words import picture_reader

    skills: dict[str, ReaderSkill] = {}
    for name, tasks in sets.items():
        reader = picture_reader(n_threads=settings.n_threads or n_usable_cores())
        if reader is not None:
            shown = progress(len(tasks), "pictures read by the guard")
            skills[name] = measure_reader(reader, fit, tasks, progress=shown)
    return skills


def _read_sets(options: argparse.Namespace) -> dict[str, list[PictureTask]]:
    from safesteer_edge.evaluation.picture_skill import read_manifest, read_safebench
    from safesteer_edge.library.catalogue import models_folder

    sets: dict[str, list[PictureTask]] = {}
    own = options.data
    if own is None and (models_folder() / _DEFAULT_DATA).is_dir():
        own = models_folder() / _DEFAULT_DATA
    if own is not None:
        sets["held-out pictures"] = read_manifest(own)[: options.limit]
    if options.safebench is not None:
        sets["FigStep SafeBench-Tiny"] = read_safebench(options.safebench)[: options.limit]
    if not sets:
        raise InputError("there are no pictures to measure on; give a folder with --data DIR")
    return sets


def _print_skill(name: str, skill: PictureSkill) -> None:
    print(f"\n{name}: {skill.n_pictures} pictures")
    if skill.reading is not None:
        print(f"  words read               {skill.reading}")
    if skill.naming is not None:
        print(f"  right name               {skill.naming}, {skill.n_classes} classes")
    if skill.n_refused:
        print(f"  ended by the guard       {skill.n_refused}")
    if skill.added_s is not None:
        print(f"  added to the first text  {skill.added_s:.2f} s (median)")


def _print_reader(skill: ReaderSkill | None) -> None:
    if skill is None:
        print("  read by the guard        nothing: the extra picture-words is not installed")
        return
    if skill.reading is not None:
        print(f"  read by the guard        {skill.reading}")
    if skill.made_up is not None:
        print(f"  words where none are     {skill.made_up}")
    then = "" if skill.then_s is None else f", each more {skill.then_s:.2f} s (median)"
    print(f"  reading took             the first {skill.first_s:.2f} s{then}")
    if skill.added_bytes is not None:
        print(f"  memory for reading       {skill.added_bytes / 2**20:.0f} MiB")


def _to_json(skill: PictureSkill, reader: ReaderSkill | None) -> dict[str, Any]:
    value: dict[str, Any] = asdict(skill)
    if skill.reading is not None:
        value["reading"]["recall"] = skill.reading.value
    if skill.naming is not None:
        value["naming"] |= {"accuracy": skill.naming.value, "wilson_95": skill.naming.interval}
    value["reader"] = None
    if reader is not None:
        read: dict[str, Any] = asdict(reader)
        if reader.reading is not None:
            read["reading"]["recall"] = reader.reading.value
        value["reader"] = read
    return value


def _write_answers(path: Path, answers: list[PictureAnswer]) -> None:
    from safesteer_edge.formats.atomic_write import atomic_write

    rows = [
        {
            "image": answer.task.image.name,
            "kind": answer.task.kind,
            "expected": list(answer.task.expected),
            "answer": answer.text,
            "n_tokens": answer.n_tokens,
            "refused": answer.refused,
            "added_s": answer.added_s,
        }
        for answer in answers
    ]
    try:
        with atomic_write(path, "w") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise InputError(
            f"cannot write answers {str(path)!r}: {error.strerror}; give a file in a folder that "
            "exists and is writable"
        ) from error
