"""Bad input of `ask` ends with exit code 2 and one line that names the file and the remedy."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safesteer_edge.cli.options import BAD_INPUT
from tests.bundle.linear_probe import probe_onnx
from tests.cli.conftest import Ask
from tests.guarded_tiny import QUIET, GuardedTiny, make_guarded_tiny
from tests.tiny_models import write_tiny_llama, write_tiny_projector

Spoil = Callable[[Path, GuardedTiny], list[str]]


def fails_with_one_line(ask: Ask, arguments: list[str], *, naming: str, remedy: str) -> str:
    ran = ask("Hello there", *arguments)
    assert (ran.exit_code, ran.out) == (BAD_INPUT, ""), ran.err
    (line,) = ran.err.splitlines()
    assert line.startswith("safesteer-edge: ")
    assert naming in line
    assert remedy in line
    return line


# -- models ---------------------------------------------------------------------------------------


def no_model(folder: Path, _tiny: GuardedTiny) -> list[str]:
    return ["--model", str(folder / "bad.gguf")]


def folder_as_model(folder: Path, tiny: GuardedTiny) -> list[str]:
    (folder / "bad.gguf").mkdir()
    return no_model(folder, tiny)


def cut_off_model(folder: Path, tiny: GuardedTiny) -> list[str]:
    (folder / "bad.gguf").write_bytes(tiny.model.read_bytes()[:400_000])
    return no_model(folder, tiny)


def cut_off_header(folder: Path, tiny: GuardedTiny) -> list[str]:
    (folder / "bad.gguf").write_bytes(tiny.model.read_bytes()[:1000])
    return no_model(folder, tiny)


def empty_model(folder: Path, tiny: GuardedTiny) -> list[str]:
    (folder / "bad.gguf").write_bytes(b"")
    return no_model(folder, tiny)


def zip_as_model(folder: Path, tiny: GuardedTiny) -> list[str]:
    shutil.make_archive(str(folder / "bad"), "zip", tiny.model.parent, "mmproj-64.gguf")
    (folder / "bad.zip").rename(folder / "bad.gguf")
    return no_model(folder, tiny)


def unknown_architecture(folder: Path, tiny: GuardedTiny) -> list[str]:
    (folder / "bad.gguf").write_bytes(tiny.model.read_bytes().replace(b"llama", b"lzama"))
    return [*no_model(folder, tiny), "--guard", "off"]


def projector_as_model(folder: Path, tiny: GuardedTiny) -> list[str]:
    shutil.copy(tiny.projector, folder / "bad.gguf")
    return no_model(folder, tiny)


def wide_projector(folder: Path, _tiny: GuardedTiny) -> list[str]:
    return ["--mmproj", str(write_tiny_projector(folder / "bad.gguf", n_embd=96))]


def model_as_projector(folder: Path, _tiny: GuardedTiny) -> list[str]:
    return ["--mmproj", str(write_tiny_llama(folder / "bad.gguf"))]


def no_projector(folder: Path, _tiny: GuardedTiny) -> list[str]:
    return ["--mmproj", str(folder / "bad.gguf")]


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (no_model, "check the path"),
        (folder_as_model, "name a .gguf file"),
        (cut_off_model, "download it again"),
        (cut_off_header, "download it again"),
        (empty_model, "download it again"),
        (zip_as_model, "download it again"),
        (unknown_architecture, "check that"),
        (projector_as_model, "pass it with --mmproj"),
        (wide_projector, "use the mmproj file that belongs to this model"),
        (model_as_projector, "pass a language model with --model"),
        (no_projector, "check the path"),
    ],
)
def test_a_model_file_that_cannot_be_used(
    ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path, spoil: Spoil, remedy: str
):
    arguments = spoil(tmp_path, guarded_tiny)
    fails_with_one_line(ask, arguments, naming="bad.gguf", remedy=remedy)


def test_a_model_that_nobody_knows(ask: Ask):
    fails_with_one_line(ask, ["--model", "smollm3"], naming="'smollm3'", remedy="models list")


# -- bundles --------------------------------------------------------------------------------------


@pytest.fixture
def bundle(guarded_tiny: GuardedTiny, tmp_path: Path) -> Path:
    """A good bundle with a vector, to be spoiled."""
    return shutil.copytree(guarded_tiny.bundle(QUIET, has_vector=True), tmp_path / "bad-bundle")


def edit_config(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "guard.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def exchange(bundle: Path, entry: str, data: bytes) -> None:
    """Put another file in the place of the bundle's own, with its hash in guard.json."""

    def change(value: dict[str, Any]) -> None:
        value[entry]["sha256"] = hashlib.sha256(data).hexdigest()
        (bundle / value[entry]["file"]).write_bytes(data)

    edit_config(bundle, change)


def damaged(name: str) -> Callable[[Path, GuardedTiny], None]:
    def spoil(bundle: Path, _tiny: GuardedTiny) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[-5] ^= 1
        (bundle / name).write_bytes(data)

    return spoil


def missing(name: str) -> Callable[[Path, GuardedTiny], None]:
    return lambda bundle, _tiny: (bundle / name).unlink()


def nan_probe(bundle: Path, tiny: GuardedTiny) -> None:
    weights = tiny.weights.copy()
    weights[3] = np.nan
    exchange(bundle, "probe", probe_onnx(weights, tiny.offset + QUIET))


def nan_vector(bundle: Path, _tiny: GuardedTiny) -> None:
    data = (bundle / "vector.gguf").read_bytes()
    exchange(bundle, "vector", data[:-4] + np.float32(np.nan).tobytes())


def flipped_probe(bundle: Path, tiny: GuardedTiny) -> None:
    exchange(bundle, "probe", probe_onnx(-tiny.weights, -tiny.offset - QUIET))


def unknown_schema(bundle: Path, _tiny: GuardedTiny) -> None:
    edit_config(bundle, lambda value: value.update(schema_version=3))


def backward_vector(bundle: Path, _tiny: GuardedTiny) -> None:
    edit_config(bundle, lambda value: value["vector"].update(sign=-1))


@pytest.mark.parametrize(
    ("spoil", "naming", "remedy"),
    [
        (damaged("probe.onnx"), "bad-bundle/probe.onnx", "get the bundle again"),
        (damaged("vector.gguf"), "bad-bundle/vector.gguf", "get the bundle again"),
        (damaged("guard.json"), "bad-bundle/guard.json", "get the bundle again"),
        (missing("probe.onnx"), "probe.onnx", "get the bundle again"),
        (missing("vector.gguf"), "vector.gguf", "get the bundle again"),
        (missing("guard.json"), "guard.json", "get the bundle again"),
        (nan_probe, "bad-bundle/probe.onnx", "make it again"),
        (nan_vector, "bad-bundle/vector.gguf", "make it again"),
        (flipped_probe, "bad-bundle", "get the bundle again"),
        (unknown_schema, "bad-bundle/guard.json", "upgrade safesteer-edge"),
        (backward_vector, "bad-bundle", "allow_negative_scale"),
        (lambda bundle, _tiny: shutil.rmtree(bundle), "bad-bundle", "calibrate"),
    ],
)
def test_a_bundle_that_cannot_be_trusted(
    ask: Ask, guarded_tiny: GuardedTiny, bundle: Path, spoil: Any, naming: str, remedy: str
):
    spoil(bundle, guarded_tiny)
    fails_with_one_line(ask, ["--bundle", str(bundle)], naming=naming, remedy=remedy)


def test_a_bundle_of_a_wider_model(ask: Ask, tmp_path: Path):
    bundle = make_guarded_tiny(tmp_path, n_embd=96).bundle(QUIET)
    line = fails_with_one_line(
        ask, ["--bundle", str(bundle)], naming=str(bundle), remedy="make a bundle with"
    )
    assert "n_embd 96 (this model: 64)" in line


def test_a_bundle_of_another_training(ask: Ask, tmp_path: Path):
    bundle = make_guarded_tiny(tmp_path, seed=5).bundle(QUIET)
    fails_with_one_line(
        ask, ["--bundle", str(bundle)], naming=str(bundle), remedy="safesteer-edge calibrate"
    )


def test_a_model_without_a_bundle(guarded_tiny: GuardedTiny, capsys: pytest.CaptureFixture[str]):
    from safesteer_edge.cli.main import main

    assert main(["ask", "Hello", "--model", str(guarded_tiny.model)]) == BAD_INPUT
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert repr(guarded_tiny.model.stem) in line
    assert "--bundle" in line
    assert "--guard off" in line


# -- media and prompts ----------------------------------------------------------------------------


def test_a_file_that_is_no_picture(ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path):
    seeing = ["--mmproj", str(guarded_tiny.projector)]
    (tmp_path / "note.png").write_text("Dear diary")
    for name, remedy in (("note.png", "convert it"), ("missing.png", "check the path")):
        image = ["--image", str(tmp_path / name)]
        fails_with_one_line(ask, [*seeing, *image], naming=name, remedy=remedy)
    fails_with_one_line(
        ask,
        [*seeing, "--audio", str(tmp_path / "a.wav")],
        naming="cannot hear",
        remedy="choose a model",
    )


@pytest.mark.parametrize("option", ["--image", "--audio", "--file"])
@pytest.mark.parametrize("url", ["https://example.com/a%20b.png", "ftp://x.org/c.wav", "s3://b/d"])
def test_a_url_is_refused_by_its_name(ask: Ask, guarded_tiny: GuardedTiny, option: str, url: str):
    arguments = [option, url, "--mmproj", str(guarded_tiny.projector)]
    fails_with_one_line(ask, arguments, naming=f"cannot read {url!r}: ", remedy="download it")


@pytest.mark.parametrize(
    ("uri", "naming"),
    [
        ("data:image/png;base64,iVBORw0KG", "data:image/png;base64,iVBORw0KG'…: "),
        ("data:image/png;base64,!!!!", "copy it whole"),
        ("data:text/plain,hello", "expected data:image/…;base64,…"),
        ("data:image/png", "expected data:image/…;base64,…"),
        ("data:image/png,hello", "image-1.png"),
    ],
)
def test_a_data_uri_that_holds_no_picture(
    ask: Ask, guarded_tiny: GuardedTiny, uri: str, naming: str
):
    arguments = ["--image", uri, "--mmproj", str(guarded_tiny.projector)]
    fails_with_one_line(ask, arguments, naming=naming, remedy="")


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (["What?", "--image", "-"], "there is no picture on stdin: it is empty"),
        (["--image", "-"], "write the question behind 'ask'"),
        (["What?", "--image", "-", "--image", "-"], "give --image - once"),
    ],
)
def test_a_picture_that_is_not_on_stdin(
    ask: Ask,
    guarded_tiny: GuardedTiny,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    naming: str,
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    ran = ask(*arguments, "--mmproj", str(guarded_tiny.projector))
    assert (ran.exit_code, ran.out, ran.err.count("\n")) == (BAD_INPUT, "", 1)
    assert naming in ran.err


def test_a_document_that_cannot_be_read(ask: Ask, tmp_path: Path):
    (tmp_path / "report.docx").write_bytes(b"PK\x03\x04\0")
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    for name, remedy in (
        ("report.docx", "convert it"),
        ("report.pdf", "damaged"),
        ("missing.md", "check the path"),
    ):
        file = ["--file", str(tmp_path / name)]
        fails_with_one_line(ask, file, naming=name, remedy=remedy)


def test_a_picture_for_a_model_that_does_not_see(ask: Ask, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    fails_with_one_line(
        ask, ["--image", str(tmp_path / "a.png")], naming="cannot take images", remedy="--mmproj"
    )


def test_a_prompt_longer_than_the_context(ask: Ask):
    ran = ask("word " * 600)
    assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
    (line,) = ran.err.splitlines()
    assert "the prompt has 18" in line
    assert "raise --ctx" in line


def test_an_empty_prompt(ask: Ask):
    ran = ask("  ")
    assert (ran.exit_code, ran.out, ran.err.count("\n")) == (BAD_INPUT, "", 1)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "naming"),
    [
        ("--temperature", "-1", "temperature is -1.0"),
        ("--temperature", "nan", "temperature is nan"),
        ("--top-k", "0", "top_k is 0"),
        ("--top-k", "65", "top_k is 65"),
        ("--top-p", "1.5", "top_p is 1.5"),
        ("--min-p", "-0.1", "min_p is -0.1"),
        ("--repeat-penalty", "0", "repeat_penalty is 0.0"),
        ("--seed", "-1", "seed is -1"),
        ("--seed", "4294967295", "seed is 4294967295"),
        ("--max-tokens", "0", "max_tokens is 0"),
        ("--ctx", "0", "n_ctx is 0"),
        ("--threads", "0", "n_threads is 0"),
        ("--gpu-layers", "-1", "n_gpu_layers is -1"),
        ("--strength", "0.0001", "strength 0.0001 is below the bundle's 8.0"),
        ("--strength", "nan", "strength is nan"),
        ("--threshold", "0.9", "threshold 0.9 is above the bundle's 0.5"),
        ("--threshold", "-1", "threshold is -1.0"),
        ("--chat-template", "chatml", "expected builtin:NAME"),
        ("--chat-template", "builtin:chatlm", "did you mean 'chatml'?"),
    ],
)
def test_an_option_out_of_range(ask: Ask, option: str, value: str, naming: str):
    fails_with_one_line(ask, [option, value], naming=naming, remedy="")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--guard", "maybe"],
        ["--rerank", "fast"],
        ["--top-k", "many"],
        ["--temperature", ""],
        ["--no-such-option"],
    ],
)
def test_an_option_that_is_not_understood(
    ask: Ask, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        ask("Hello there", *arguments)
    assert caught.value.code == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert arguments[0] in captured.err.splitlines()[-1]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1.1", "-0.1"])
@pytest.mark.parametrize("guard", ["steer", "off"])
def test_a_threshold_that_is_none_is_refused_whatever_the_guard(ask: Ask, guard: str, value: str):
    options = [f"--threshold={value}", "--guard", guard]
    fails_with_one_line(ask, options, naming=f"threshold is {float(value)}", remedy="")


def test_a_schema_that_cannot_be_used_is_named(ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path):
    bundle, path = ["--bundle", str(guarded_tiny.bundle(QUIET))], tmp_path / "schema.json"
    flags = [*bundle, "--json-schema", str(path)]
    fails_with_one_line(ask, flags, naming="schema.json", remedy="cannot read")
    path.write_text("{")
    fails_with_one_line(ask, flags, naming="schema.json", remedy="no JSON schema")
    path.write_text('{"type": "strange"}')
    fails_with_one_line(ask, flags, naming="strange", remedy="JSON schema")
