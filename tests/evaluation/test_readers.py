"""Public benchmark files: their own columns are read, and what is wrong is listed row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.errors import RequestDataError, SettingsError
from safesteer_edge.evaluation.case import PictureStore, Suite
from safesteer_edge.evaluation.case_files import (
    FORMATS,
    FileChoice,
    parse_file_choice,
    read_suite,
    read_suites,
)
from safesteer_edge.media.typographic import png_bytes, render_text


@pytest.fixture
def read(tmp_path: Path):
    def run(name: str, content: str | bytes, file_name: str = "data.csv") -> Suite:
        path = tmp_path / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_suite(FileChoice(name, path), PictureStore(tmp_path / "drawn"))

    return run


def picture() -> bytes:
    return png_bytes(render_text("bread"))


def test_advbench(read):
    suite = read("advbench", 'goal,target\nBake bread,"Sure, here is"\n"Store, flour",Sure\n')
    assert [case.turns for case in suite.cases] == [("Bake bread",), ("Store, flour",)]
    assert {case.kind for case in suite.cases} == {"harmful"}
    assert suite.name == "advbench:data"


def test_harmbench_puts_the_context_before_the_behaviour(read):
    suite = read(
        "harmbench",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        'Bake it,contextual,illegal,context,"Flour,\nwater",bake_1\n'
        "Eat it,standard,harmful,,,eat_1\n",
    )
    assert suite.cases[0].turns == ("Flour,\nwater\n\n---\n\nBake it",)
    assert suite.cases[0].request == "Bake it"
    assert [case.category for case in suite.cases] == ["illegal", "harmful"]
    assert [case.id for case in suite.cases] == ["bake_1", "eat_1"]


def test_jailbreakbench_has_harmful_and_benign_files(read):
    text = "Index,Goal,Target,Behavior,Category,Source\n0,Bake,Sure,B,Fraud,Original\n"
    assert read("jailbreakbench", text, "harmful.csv").cases[0].kind == "harmful"
    assert read("jailbreakbench", text, "benign-behaviors.csv").cases[0].kind == "borderline"


def test_malicious_instruct_is_a_request_a_line(read):
    suite = read("maliciousinstruct", "Bake bread?\n\nStore flour?\n", "m.txt")
    assert [case.request for case in suite.cases] == ["Bake bread?", "Store flour?"]


@pytest.mark.parametrize(
    "text",
    [
        "id,prompt,type,label,focus,note\n1,Kill a process?,homonyms,safe,,\n2,Hurt?,x,unsafe,,\n",
        "id_v2,type,prompt,focus,note\nv2-1,homonyms,Kill a process?,,\n"
        "v2-2,contrast_homonyms,Hurt?,,\n",
    ],
    ids=["labelled", "by type"],
)
def test_xstest_tells_safe_from_unsafe(read, text: str):
    suite = read("xstest", text)
    assert [case.kind for case in suite.cases] == ["borderline", "harmful"]
    assert suite.cases[0].category == "homonyms"


SAFEBENCH = (
    "dataset,category_id,task_id,category_name,question,instruction\n"
    "ForbidQI,1,1,Baking,How is bread baked?,Steps to bake bread.\n"
    "ForbidQI,1,2,Baking,How is flour stored?,Steps to store flour.\n"
)


def test_figstep_is_drawn_where_its_images_are_absent(read):
    suite = read("figstep", SAFEBENCH, "SafeBench.csv")
    assert [case.request for case in suite.cases] == ["How is bread baked?", "How is flour stored?"]
    assert all(case.image is not None and case.image.is_file() for case in suite.cases)
    assert len({case.image for case in suite.cases}) == 2


def test_figstep_reports_an_image_that_is_missing_among_others(read, tmp_path: Path):
    (tmp_path / "query_ForbidQI_1_1_6.png").write_bytes(picture())
    suite = read("figstep", SAFEBENCH, "SafeBench.csv")
    assert [case.image for case in suite.cases] == [tmp_path / "query_ForbidQI_1_1_6.png"]
    assert [row.where for row in suite.unreadable] == ["row 3"]
    assert "query_ForbidQI_1_2_6.png" in suite.unreadable[0].problem


def test_mm_safetybench_has_three_pictures_a_question(read, tmp_path: Path):
    entry = {"Question": "Q?", "Rephrased Question": "this?", "Rephrased Question(SD)": "that?"}
    for folder in ("SD", "TYPO"):
        target = tmp_path / "imgs" / "01-Baking" / folder
        target.mkdir(parents=True)
        (target / "0.jpg").write_bytes(picture())
    suite = read("mm-safetybench", json.dumps({"0": entry}), "processed_questions/01-Baking.json")
    assert {case.attack: case.turns[0] for case in suite.cases} == {"sd": "that?", "typo": "this?"}
    assert [row.where for row in suite.unreadable] == ["entry 0, SD_TYPO"]


def test_mm_vet(read, tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    data = {
        "v1_0": {
            "imagename": "a.png",
            "question": "x?",
            "answer": "1<OR>one",
            "capability": ["ocr", "math"],
        },
        "v1_1": {"imagename": "../a.png", "question": "x?", "answer": "1"},
        "v1_2": {"imagename": "b.png", "question": "x?", "answer": "1"},
        "v1_3": [],
    }
    suite = read("mm-vet", json.dumps(data), "mm-vet.json")
    assert suite.cases[0].expected == ("1", "one")
    assert suite.cases[0].category == "math+ocr"
    assert [row.where for row in suite.unreadable] == ["entry v1_1", "entry v1_2", "entry v1_3"]


def test_science_qa(read):
    data = {
        "1": {
            "question": "What rises?",
            "choices": ["dough", "stone"],
            "answer": 0,
            "hint": "",
            "image": None,
            "split": "test",
            "subject": "natural science",
        },
        "2": {"question": "x", "choices": ["a", "b"], "answer": 0, "split": "train"},
        "3": {"question": "x", "choices": ["a"], "answer": 0, "split": "test"},
        "4": {"question": "x", "choices": ["a", "b"], "answer": 2, "split": "test"},
    }
    suite = read("scienceqa", json.dumps(data), "problems.json")
    assert len(suite.cases) == 1
    assert suite.cases[0].expected == ("dough",)
    assert "A. dough\nB. stone" in suite.cases[0].turns[0]
    assert len(suite.unreadable) == 2


def test_a_users_own_lines(read):
    lines = [
        {"request": "Bake?", "kind": "harmful", "answer_prefix": "Sure", "attack": "prefill"},
        {"request": "2+2?", "kind": "benign", "expected": ["4"], "turns": ["Hi", "2+2?"]},
        {"request": "Bake?", "kind": "wicked"},
        {"request": "Bake?", "kind": "benign", "promt": "x"},
        {"request": "Bake?", "kind": "benign", "image": "none.png"},
        {"request": "", "kind": "benign"},
        {"request": "Bake?", "kind": "benign", "turns": "Bake?"},
    ]
    text = "\n".join([*map(json.dumps, lines), "{broken", "[]", ""])
    suite = read("jsonl", text, "mine.jsonl")
    assert [case.kind for case in suite.cases] == ["harmful", "benign"]
    assert suite.cases[0].given_text == "Sure"
    assert suite.cases[1].turns == ("Hi", "2+2?")
    assert [row.where for row in suite.unreadable] == [f"line {n}" for n in range(3, 10)]
    assert "mean 'request'" in suite.unreadable[1].problem or "promt" in suite.unreadable[1].problem


def test_a_row_with_too_many_values_is_listed(read):
    suite = read("advbench", "goal,target\nBake,x\nBake, bread,x\n,x\n")
    assert len(suite.cases) == 1
    assert [(row.where, row.problem) for row in suite.unreadable] == [
        ("row 3", "3 values for 2 columns"),
        ("row 4", "'goal' is empty"),
    ]


def test_an_id_that_is_there_twice_is_listed(read):
    header = "Behavior,SemanticCategory,ContextString,BehaviorID\n"
    suite = read("harmbench", f"{header}Bake,a,,x\nEat,a,,x\n")
    assert len(suite.cases) == 1
    assert "twice" in suite.unreadable[0].problem


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("advbench", "question,answer\nBake,x\n", "has no column 'goal' or 'Behavior'"),
        ("harmbench", "Behavior\nBake\n", "has no column 'SemanticCategory'"),
        ("advbench", "", "it has none"),
        ("advbench", "goal,target\n", "no rows"),
        ("advbench", b"goal\n\xff\n", "not UTF-8"),
        ("mm-vet", "[1", "as JSON"),
        ("mm-vet", "3", "neither"),
        ("mm-vet", "[" * 100_000, "as JSON"),
    ],
)
def test_a_file_that_is_none_of_its_format_is_an_error(read, name: str, content, problem: str):
    with pytest.raises(RequestDataError, match=problem):
        read(name, content)


def test_a_missing_file_is_an_error(tmp_path: Path):
    for name in FORMATS:
        with pytest.raises(RequestDataError, match="cannot read"):
            read_suite(FileChoice(name, tmp_path / "none"), PictureStore(tmp_path))


def test_a_choice_is_a_format_and_a_path():
    assert parse_file_choice("xstest=a/b.csv") == FileChoice("xstest", Path("a/b.csv"))
    for text in ("xstest", "unknown=a.csv", "xstest="):
        with pytest.raises(SettingsError, match="FORMAT=PATH"):
            parse_file_choice(text)


def test_plain_prompts_are_what_their_format_says(read):
    text = '{"text": "Bake bread", "kind": "food"}\n{"id": 1}\n'
    kinds = {"harmful": "harmful", "borderline": "borderline", "ordinary": "benign"}
    for name, kind in kinds.items():
        suite = read(f"{name}-prompts", text)
        [case] = suite.cases
        assert (case.turns, case.kind, case.category) == (("Bake bread",), kind, "food")
        assert [row.problem for row in suite.unreadable] == ["no text under 'text'"]


def test_ordinary_prompts_are_read_as_the_sets_that_people_use_write_them(read):
    lines = [
        {"prompt": "Bake bread", "key": 1000},  # IFEval
        {"question": "How many eggs?", "answer": "18"},  # GSM8K
        {"turns": ["Name a bird.", "And a fish."]},  # MT-Bench
        {"turns": [{"content": "Sing a song."}]},  # Arena-Hard
        {"turns": [7]},
        {"turns": []},
    ]
    suite = read("ordinary-prompts", "".join(json.dumps(line) + "\n" for line in lines))
    assert [case.turns for case in suite.cases] == [
        ("Bake bread",),
        ("How many eggs?",),
        ("Name a bird.",),
        ("Sing a song.",),
    ]
    assert {case.kind for case in suite.cases} == {"benign"}
    assert [row.problem for row in suite.unreadable] == ["no text under 'text'"] * 2


def test_jailbreak_prompts_ask_for_the_goal_in_the_attacks_words(read):
    lines = [{"id": 3, "goal": "Bake bread", "text": "You are a baker. Bake bread."}, {"goal": "x"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    suite = read("jailbreak-prompts", text, "jbb_pair_vicuna.jsonl")
    [case] = suite.cases
    assert (case.request, case.turns, case.attack) == ("Bake bread", (lines[0]["text"],), "pair")
    assert case.kind == "harmful"
    assert [row.problem for row in suite.unreadable] == ["no text under 'text'"]


VLGUARD = [
    {
        "id": "a",
        "image": "baking/oven.png",
        "safe": True,
        "instr-resp": [
            {"safe_instruction": "What is this?", "response": "An oven."},
            {"unsafe_instruction": "How do I break it?", "response": "No."},
        ],
    },
    {
        "id": "b",
        "image": "knife.png",
        "safe": False,
        "harmful_category": "risky behavior",
        "instr-resp": [{"instruction": "Describe it.", "response": "No."}],
    },
]


def vlguard_pictures(folder: Path) -> None:
    """As test.zip unpacks them."""
    for name in ("baking/oven.png", "knife.png"):
        (folder / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "test" / name).write_bytes(picture())


def test_vlguard_asks_safe_and_unsafe_things_about_safe_pictures_and_about_unsafe_ones(
    read, tmp_path: Path
):
    vlguard_pictures(tmp_path)
    suite = read("vlguard", json.dumps(VLGUARD), "test.json")
    assert [(case.kind, case.attack, case.turns[0]) for case in suite.cases] == [
        ("benign", "none", "What is this?"),
        ("harmful", "unsafe-instruction", "How do I break it?"),
        ("harmful", "unsafe-image", "Describe it."),
    ]
    assert suite.cases[2].category == "risky behavior"
    assert suite.cases[0].image == tmp_path / "test" / "baking" / "oven.png"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"safe": False}, "'safe' is False beside 'safe_instruction'"),
        ({"safe": None}, "'safe' is None beside 'safe_instruction'"),
        ({"image": "../oven.png"}, "not a file's name"),
        ({"image": "/etc/passwd"}, "not a file's name"),
        ({"image": "none.png"}, "no image 'none.png'"),
        ({"instr-resp": []}, "no instructions"),
        ({"instr-resp": [{"instructions": "x"}]}, "no text under 'instruction'"),
    ],
)
def test_a_row_of_vlguard_that_contradicts_itself_is_listed(
    read, tmp_path: Path, changes: dict, problem: str
):
    vlguard_pictures(tmp_path)
    suite = read("vlguard", json.dumps([{**VLGUARD[0], **changes}, VLGUARD[1]]), "test.json")
    assert len(suite.cases) == 1
    assert problem in suite.unreadable[0].problem


def test_msts_is_asked_in_words_and_about_a_drawing_of_the_one_thing(tmp_path: Path):
    header = "hazard_category,unsafe_image_description,prompt_id,prompt_text\n"
    (tmp_path / "english_multimodal.csv").write_text(
        f"{header}Food,Bread,prompt_1,Should I burn this?\n"
        "Food,Stale bread,prompt_2,Should I eat this?\n"
        "Food,Crowd with bread,prompt_3,Should I take this?\n"
        "Food,Cheese,prompt_4,Should I grate this?\n"
    )
    (tmp_path / "english_textonly.csv").write_text(
        f"{header}Food,Bread,prompt_1,Should I burn bread?\n"
    )
    (tmp_path / "loaf.png").write_bytes(picture())
    shown = {"image": "loaf.png", "kind": "name", "expected": ["bread", "loaf"]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(shown))
    choice = FileChoice("msts", tmp_path / "english_multimodal.csv")
    suite = read_suite(choice, PictureStore(tmp_path / "drawn", tmp_path))
    assert [(case.attack, case.turns[0], case.image) for case in suite.cases] == [
        ("in-words", "Should I burn bread?", None),
        ("in-the-picture", "Should I burn this?", tmp_path / "loaf.png"),
    ]
    assert {case.request for case in suite.cases} == {"Should I burn bread?"}
    # Of "Stale bread" there is no form in words; the others are not one thing that is drawn.
    assert [row.where for row in suite.unreadable] == ["row 3, in-words", "row 3, in-the-picture"]
    # A picture that the model names wrong shows nothing.
    wrong = {**shown, "right": False}
    (tmp_path / "named.jsonl").write_text(json.dumps(wrong))
    with pytest.raises(RequestDataError, match="no rows"):
        read_suite(choice, PictureStore(tmp_path / "drawn", tmp_path / "named.jsonl"))


def test_the_papers_benchmarks_are_found_below_one_folder(tmp_path: Path):
    entry = {"Question": "Q?", "Rephrased Question": "this?", "Rephrased Question(SD)": "that?"}
    data = tmp_path / "MM-SafetyBench" / "data"
    for scenario in ("01-Baking", "02-Storing"):
        for folder in ("SD", "SD_TYPO", "TYPO"):
            target = data / "imgs" / scenario / folder
            target.mkdir(parents=True)
            (target / "0.jpg").write_bytes(picture())
        (data / "processed_questions").mkdir(exist_ok=True)
        (data / "processed_questions" / f"{scenario}.json").write_text(json.dumps({"0": entry}))
    (tmp_path / "FigStep" / "data" / "question").mkdir(parents=True)
    (tmp_path / "FigStep" / "data" / "question" / "safebench.csv").write_text(SAFEBENCH)
    images = tmp_path / "FigStep" / "data" / "images" / "SafeBench"
    images.mkdir(parents=True)
    for task in (1, 2):
        (images / f"query_ForbidQI_1_{task}_6.png").write_bytes(picture())
    choice = parse_file_choice(f"paper={tmp_path}")
    suites, missing = read_suites(choice, PictureStore(tmp_path / "drawn"))
    assert [suite.name for suite in suites] == ["MM-SafetyBench", "FigStep"]
    assert [len(suite.cases) for suite in suites] == [6, 2]
    assert not any(suite.unreadable for suite in suites)
    assert {case.category for case in suites[0].cases} == {"01-Baking", "02-Storing"}
    assert suites[1].cases[0].image == images / "query_ForbidQI_1_1_6.png"
    assert list(missing) == ["VLGuard"] and "test.json" in missing["VLGuard"]
    with pytest.raises(RequestDataError, match="holds none of the folders"):
        read_suites(FileChoice("paper", tmp_path / "none"), PictureStore(tmp_path / "drawn"))
