"""Lists of requests in text: AdvBench, HarmBench, JailbreakBench, MaliciousInstruct, XSTest."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from safesteer_edge.evaluation.readers.tables import (
    RowError,
    SuiteBuilder,
    csv_rows,
    id_at,
    read_text_file,
    text_of,
)
from safesteer_edge.evaluation.suites.case import Case, CaseKind, PictureStore, Suite, safe_id


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
