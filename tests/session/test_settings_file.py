"""The settings file: typed, refused where it is wrong, written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.errors import SettingsError
from safesteer_edge.session.settings_file import (
    known_setting,
    read_settings,
    save_setting,
    settings_path,
    settings_to_toml,
    user_settings,
    value_to_text,
    with_environment,
    with_setting,
    with_values,
    without_setting,
    write_settings,
)
from safesteer_edge.session.settings_schema import SETTINGS, Setting, UserSettings, value_of
from tests.formats.mutations import mutants

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def read(path: Path, text: str) -> UserSettings:
    path.write_text(text, encoding="utf-8")
    return read_settings(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_without_a_file_everything_is_at_its_default(path: Path):
    assert read_settings(path) == UserSettings()
    assert read(path, "") == UserSettings()


def test_a_file_is_read_by_section(path: Path):
    found = read(
        path,
        '[model]\nname = "qwen"\ncontext = 8192\n[sampling]\ntemperature = 1\n'
        '[guard]\nmode = "refuse"\nstrength = 20.5\n[look]\ntheme = "light"\n',
    )
    session = found.session
    assert (session.strength, found.look.theme) == (20.5, "light")
    assert (session.model, session.n_ctx, session.guard) == ("qwen", 8192, "refuse")
    assert session.sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[modell]\n", r"no section \[modell\]; did you mean 'model'\?"),
        ("[sampling]\ntemprature = 1\n", r"sampling\.temprature; did you mean 'temperature'"),
        ("model = 1\n", r"model is 1; expected a section"),
        ('[sampling]\ntemperature = "hot"\n', r"sampling\.temperature is 'hot'; expected a number"),
        ("[sampling]\ntop_k = 1.5\n", r"sampling\.top_k is 1\.5; expected a whole number"),
        ("[sampling]\ntop_k = true\n", r"sampling\.top_k is True; expected a whole number"),
        ("[chats]\nsave = 1\n", r"chats\.save is 1; expected true or false"),
        ("[sampling]\ntop_p = 2.0\n", r"\[sampling\]: top_p is 2\.0; expected 0\.0 to 1\.0"),
        ("[model]\ncontext = 3\n", r"n_ctx is 3; expected at least 64"),
        ("[guard]\nstrength = nan\n", r"\[guard\]: guard strength is nan; expected 1e-06"),
        ("[guard]\nstrength = inf\n", r"\[guard\]: guard strength is inf"),
        ("[guard]\nthreshold = -nan\n", r"\[guard\]: guard threshold is nan; expected 0\.0"),
        ("[guard]\nthreshold = 1.1\n", r"\[guard\]: guard threshold is 1\.1"),
        (f"[guard]\nthreshold = -{'9' * 400}\n", r"guard\.threshold is -9+…; expected a smaller"),
        ("[sampling]\ntemperature = nan\n", r"\[sampling\]: temperature is nan"),
        ("[sampling]\nmin_p = -inf\n", r"\[sampling\]: min_p is -inf"),
        ('[look]\ntheme = "pink"\n', r"look\.theme is 'pink'; expected one of"),
        ('[keys]\nhelp = ""\n', r"\[keys\]: a key is ''"),
        ('[keys]\nhelp = "f2"\n', r"key 'f2' is given to two commands"),
        ("not toml", r"not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_with_file_key_and_value(path: Path, text: str, problem: str):
    with pytest.raises(SettingsError, match=problem) as caught:
        read(path, text)
    assert repr(str(path)) in str(caught.value)


@pytest.mark.parametrize("mode", ["off", "monitor"])
def test_a_file_cannot_switch_the_guard_off(path: Path, mode: str):
    with pytest.raises(SettingsError, match=r"guard\.mode is .*asked for each time"):
        read(path, f'[guard]\nmode = "{mode}"\n')
    with pytest.raises(SettingsError, match="asked for each time"):
        with_setting(UserSettings(), "guard.mode", mode)


def test_a_mark_that_an_editor_puts_in_front_is_no_part_of_it(path: Path):
    path.write_bytes(b"\xef\xbb\xbf[sampling]\ntop_k = 7\n")
    assert read_settings(path).session.sampling.top_k == 7


def test_bytes_that_are_no_text_are_refused(path: Path):
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not valid TOML"):
        read_settings(path)


@st.composite
def settings_values(draw: st.DrawFn) -> UserSettings:
    found = UserSettings()
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    for key, values in {
        "model.name": text,
        "model.context": st.integers(64, 10**6),
        "sampling.temperature": st.floats(0, 10),
        "sampling.seed": st.integers(0, 2**32 - 2),
        "guard.strength": st.floats(1e-3, 1e6),
        "chats.save": st.booleans(),
        "look.theme": st.sampled_from(["auto", "dark", "light"]),
    }.items():
        if draw(st.booleans()):
            found = with_values(found, {known_setting(key): draw(values)})
    return found


@given(settings_values())
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, found: Any):
    path = tmp_path_factory.getbasetemp() / "written.toml"
    assert write_settings(found, path) == path
    assert read_settings(path) == found


def test_only_what_differs_is_written():
    assert "[" not in settings_to_toml(UserSettings()).split("\n", 2)[2]
    changed = with_setting(UserSettings(), "look.theme", "dark")
    assert settings_to_toml(changed).endswith('\n[look]\ntheme = "dark"\n')


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        ("sampling.temperature", "1", 1.0),
        ("sampling.top_k", "20", 20),
        ("chats.save", "false", False),
        ("model.name", "qwen", "qwen"),
        ("model.context", "unset", None),
        ("look.theme", "dark", "dark"),
    ],
)
def test_a_setting_is_set_as_people_type_it(key: str, typed: str, value: object):
    changed = with_setting(UserSettings(), key, typed)
    assert value_of(changed, known_setting(key)) == value
    assert without_setting(changed, key) == UserSettings()


@pytest.mark.parametrize(
    ("key", "typed", "problem"),
    [
        ("sampling.temprature", "1", "did you mean 'sampling.temperature'"),
        ("sampling.temperature", "hot", "expected a number"),
        ("sampling.temperature", "-1", "expected 0.0 to 10.0"),
        ("chats.save", "yes", "expected true or false"),
        ("sampling.top_k", "unset", "expected a whole number"),
        ("sampling.top_k", "1\nseed = 2", "expected a whole number"),
    ],
)
def test_a_wrong_value_is_refused(key: str, typed: str, problem: str):
    with pytest.raises(SettingsError, match=re.escape(problem)):
        with_setting(UserSettings(), key, typed)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    with pytest.raises(SettingsError, match="make the folder writable"):
        write_settings(UserSettings(), tmp_path / "gone" / "settings.toml")


def test_the_docs_have_the_table_that_the_declaration_makes():
    rows = [
        f"| `{each.key}` | {f'`{each.flag}`' if each.flag else ''} "
        f"| `{value_to_text(each.default)}` | {each.meaning} |"
        for each in SETTINGS
    ]
    table = ["| setting | flag | default | meaning |", "| --- | --- | --- | --- |", *rows]
    assert DOCS.read_text("utf-8").endswith("\n" + "\n".join(table) + "\n")


def test_every_setting_is_of_a_section_that_stands_in_one_place():
    sections = [each.section for each in SETTINGS]
    assert sections == sorted(sections, key=sections.index)
    assert len({each.key for each in SETTINGS}) == len(SETTINGS)


def test_the_environment_goes_before_the_file(path: Path):
    file = read(path, "[sampling]\ntemperature = 1\ntop_k = 8\n")
    found = with_environment(
        file, {"SAFESTEER_SAMPLING_TOP_K": "9", "SAFESTEER_CHATS_SAVE": "false"}
    )
    sampling = found.session.sampling
    assert (sampling.temperature, sampling.top_k, found.chats.save) == (1.0, 9, False)
    assert with_environment(file, {"SAFESTEER_SAMPLING_TOP_K": "", "PATH": "/bin"}) == file


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("SAFESTEER_TEMPERATURE", "1", "did you mean 'SAFESTEER_SAMPLING_TEMPERATURE'?"),
        (
            "SAFESTEER_SAMPLING_TOP_K",
            "many",
            "SAFESTEER_SAMPLING_TOP_K is 'many'; expected a whole",
        ),
        ("SAFESTEER_SAMPLING_TOP_K", "900", "SAFESTEER_SAMPLING_TOP_K: top_k is 900; expected 1"),
        ("SAFESTEER_GUARD_MODE", "off", "weaker guards are asked for each time: --guard"),
    ],
)
def test_a_wrong_variable_is_refused(variable: str, value: str, problem: str):
    with pytest.raises(SettingsError, match=re.escape(problem)):
        with_environment(UserSettings(), {variable: value})


def test_the_files_projector_and_guard_belong_to_the_files_model(path: Path):
    file = read(path, '[model]\nname = "a"\nmmproj = "p.gguf"\nbundle = "b"\n')
    found = with_environment(file, {"SAFESTEER_MODEL_NAME": "other", "SAFESTEER_MODEL_BUNDLE": "c"})
    session = found.session
    assert (session.model, session.mmproj, session.bundle) == ("other", None, Path("c"))


def test_saving_one_setting_writes_nothing_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write_settings(with_setting(UserSettings(), "sampling.seed", "7"))
    seen = user_settings({"SAFESTEER_SAMPLING_TOP_K": "9"})
    save_setting("look.theme", with_setting(seen, "look.theme", "dark"))
    kept = with_setting(with_setting(UserSettings(), "sampling.seed", "7"), "look.theme", "dark")
    assert read_settings() == kept


@pytest.mark.parametrize("value", ["nan", "+nan", "inf", "-inf", "-0.1", "1e999", "9" * 400])
@pytest.mark.parametrize(
    "key",
    [
        "guard.strength",
        "guard.threshold",
        *(each.key for each in SETTINGS if isinstance(each.default, float)),
    ],
)
def test_no_number_that_is_typed_is_beyond_its_bounds(key: str, value: str):
    with pytest.raises(SettingsError):
        with_setting(UserSettings(), key, value)


# As TOML has them: what editors, other programs and bad disks write.
BAD_VALUES = (
    *("nan", "-inf", "-1", "0", "1e300", "1e999", "9" * 300, "9" * 5000, "0x" + "f" * 9000, "true"),
    *(
        "9223372036854775807",
        "-9223372036854775808",
        "0.5",
        "7",
        '""',
        '"x"',
        '"unset"',
        "[]",
        "{}",
    ),
    *(
        '"~nobody-here/a.gguf"',
        '"\\u0000"',
        '"\\u001b[2J"',
        '"\\uFFFF"',
        '"\\n"',
        f'"{"y" * 9000}"',
    ),
    *("1979-05-27T07:32:00Z", "[" * 200 + "]" * 200, "[" * 5000, "{a = 1}", '"f2"', '"off"', "'''"),
    *("[0x" + "f" * 9000 + "]", '"/"', '"auto"', '"q8_0"', '"dark"', "0b1", "1_000", "07"),
)
BAD_LINES = (
    "[model]",
    "[modell]",
    "[",
    "=",
    "model = 1",
    "[[look]]",
    "look.theme = 'dark'",
    "\ufeff",
)


def damaged_settings(n: int, *, seed: int) -> Iterator[bytes]:
    """Files with a few settings of any value; some with lines or bytes that are no TOML."""
    rng = Random(seed)
    for _ in range(n):
        lines = [f"# {rng.random()}"]
        for section in rng.sample(sorted({each.section for each in SETTINGS}), rng.choice((1, 2))):
            lines.append(f"[{section}]")
            known = [each for each in SETTINGS if each.section == section]
            for each in rng.sample(known, min(len(known), rng.choice((1, 1, 2, 3)))):
                name = each.name if rng.random() < 0.95 else each.name[1:] or "x" * 5000
                usual = value_to_text(each.default)
                is_usual = rng.random() < 0.6 and usual != "unset"
                lines.append(f"{name} = {usual if is_usual else rng.choice(BAD_VALUES)}")
        if rng.random() < 0.1:
            lines.insert(rng.randrange(len(lines)), rng.choice(BAD_LINES))
        data = "\n".join(lines).encode()
        yield from (
            mutants(data, 1, seed=rng.randrange(2**32), header_bytes=len(data))
            if (rng.random() < 0.15)
            else [data]
        )


@pytest.mark.parametrize("n", [400, pytest.param(2_400, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused_in_one_line(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = settings_path()
    path.parent.mkdir()
    n_read = 0
    for data in damaged_settings(n, seed=n):
        path.write_bytes(data)
        exit_code = main(["settings", "show"])
        captured = capsys.readouterr()
        if exit_code == OK:
            n_read += 1
            found = read_settings(path)
            write_settings(found, path)
            assert read_settings(path) == found
            continue
        assert exit_code == BAD_INPUT, captured.err
        (line,) = captured.err.splitlines()
        assert line.isprintable() and len(line) < 1000
    assert n // 8 < n_read < n // 2  # else the damage tests nothing


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 9000, "x" * 9000, "[" * 5000])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.key)
def test_a_variable_of_any_length_is_read_or_refused_in_one_short_line(
    setting: Setting, value: str
):
    try:
        with_environment(UserSettings(), {setting.variable: value})
    except SettingsError as error:
        assert len(str(error)) < 500
    else:
        assert setting.kind in (str, Path)
