"""The command's frame: help, versions, and how each kind of error leaves the process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safesteer_edge import __version__
from safesteer_edge.cli import main as main_module
from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, INTERRUPTED, OK, RUNTIME_ERROR, Command
from safesteer_edge.errors import BundleError, EngineError, GuardError, SafeSteerError

COMMANDS = [command.name for command in main_module.COMMANDS]
# fmt: off
HEAVY = (
    "numpy", "llama_cpp", "onnxruntime", "PIL", "jinja2", "sklearn", "onnx", "textual",
    "platformdirs",
)
# fmt: on
MAX_IMPORTED = 250  # modules: NumPy's alone are as many


@pytest.fixture
def end_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a command that ends with this error, and return the exit code."""

    def run(error: BaseException) -> int:
        def fail(_options: object) -> int:
            raise error

        monkeypatch.setattr(main_module, "COMMANDS", (Command("fail", "it fails", fail),))
        return main(["fail"])

    return run


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (BundleError("it is damaged"), BAD_INPUT),
        (EngineError("it is damaged"), RUNTIME_ERROR),
        (GuardError("it is damaged"), RUNTIME_ERROR),
        (SafeSteerError("it is damaged"), RUNTIME_ERROR),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_exit_code(
    end_with, capsys: pytest.CaptureFixture[str], error: SafeSteerError, exit_code: int
):
    assert end_with(error) == exit_code
    assert capsys.readouterr() == ("", "safesteer-edge: it is damaged\n")


def test_an_error_that_nobody_expected_is_one_line_as_well(
    end_with, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG, logger="safesteer_edge"):
        assert end_with(ValueError("two\nlines")) == RUNTIME_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("safesteer-edge: unexpected ValueError: two lines; ")
    assert "--verbose" in line
    assert any(record.exc_info for record in caplog.records)  # what --verbose shows


def test_an_interrupt_exits_130(end_with, capsys: pytest.CaptureFixture[str]):
    assert end_with(KeyboardInterrupt()) == INTERRUPTED
    assert capsys.readouterr() == ("", "safesteer-edge: interrupted\n")


def test_a_message_that_quotes_a_file_cannot_drive_the_terminal(
    end_with, capsys: pytest.CaptureFixture[str]
):
    end_with(EngineError("unknown architecture: 'a\x1b]0;owned\x07\x1b[2Jb\u202e'"))
    assert capsys.readouterr().err == "safesteer-edge: unknown architecture: 'ab'\n"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == OK
    assert capsys.readouterr().out == f"safesteer-edge {__version__}\n"


@pytest.mark.parametrize("arguments", [["unknown"], ["--unknown"]])
def test_a_command_that_is_not_there_is_a_usage_error(arguments: list[str]):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == BAD_INPUT


@pytest.mark.parametrize(("arguments", "named"), [([], COMMANDS), (["convert"], ["vector"])])
def test_a_command_is_missing_and_usage_lists_them(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: list[str]
):
    assert main(arguments) == BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert all(name in err for name in named)


@pytest.mark.parametrize("first", [["models", "list"], ["chats", "list"], ["settings", "show"]])
def test_a_command_that_has_one_obvious_thing_to_do_does_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path, first: list[str]
):
    for kind in ("CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path))
    assert main(first) == OK
    whole = capsys.readouterr()
    assert main(first[:1]) == OK
    assert capsys.readouterr() == whole


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["modles"], "models"),
        (["models", "lst"], "list"),
        (["chat", "--temprature", "1"], "--temperature"),
        (["ask", "Hello", "--gaurd=steer"], "--guard"),
        (["chats", "list", "--jsn"], "--json"),
        (["--verson"], "--version"),
        (["chat", "--theme", "drak"], "dark"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], nearest: str
):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == BAD_INPUT
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"; did you mean {nearest!r}?")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--verbose", "settings", "path"],
        ["settings", "path", "--verbose"],
        ["settings", "--verbose", "path"],
    ],
)
def test_verbose_stands_in_front_or_behind(arguments: list[str]):
    program = f"""
import logging
from safesteer_edge.cli.main import main
main({arguments!r})
print(logging.getLogger().level == logging.DEBUG)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "True", ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(capsys: pytest.CaptureFixture[str], shell: str):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == OK
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "pull", "temperature"))
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (OK, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_what_is_begun(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = capsys.readouterr().out
    found = {}
    for words in (["safesteer-edge", "mod"], ["safesteer-edge", "ask", "--temp"]):
        program = f"""{script}
COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
_shtab_safesteer_edge
echo "${{COMPREPLY[@]}}"
"""
        ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
        found[words[-1]] = ran.stdout.split()
    assert found == {"mod": ["models"], "--temp": ["--temperature"]}


def test_without_the_extra_completion_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == BAD_INPUT
    assert "safesteer-edge[completion]" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([*filter(None, [command]), "--help"])
    assert caught.value.code == OK
    out = capsys.readouterr().out
    assert "usage: safesteer-edge" in out
    assert all(name in out for name in (COMMANDS if not command else ()))


@pytest.mark.parametrize("command", ["", "ask"])
def test_help_imports_next_to_nothing(command: str):
    program = f"""
import sys
n_before = len(sys.modules)
import json
from safesteer_edge.cli.main import main
try:
    main({[*filter(None, [command]), "--help"]})
except SystemExit as end:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([end.code, loaded, len(sys.modules) - n_before]), file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    exit_code, loaded, n_imported = json.loads(ran.stderr)
    assert ran.stdout.startswith("usage: safesteer-edge")
    assert (exit_code, loaded) == (OK, [])
    assert n_imported < MAX_IMPORTED


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_list_whose_reader_has_gone_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "safesteer_edge", "models", "list"]
    ran = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert (ran.returncode, ran.stderr) == (OK, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "<&- >&-"])
@pytest.mark.parametrize("command", ["models list", "settings show --json", "--help", "--version"])
def test_what_cannot_be_printed_is_one_line_and_an_error(
    command: str, redirection: str, unbuffered: str, tmp_path: Path
):
    program = f'"{sys.executable}" -m safesteer_edge {command} {redirection}'
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "HOME": str(tmp_path)}
    ran = subprocess.run(program, shell=True, stderr=subprocess.PIPE, env=environment, text=True)
    (line,) = ran.stderr.splitlines()
    assert line.startswith("safesteer-edge: cannot write to stdout: ")
    assert ran.returncode == RUNTIME_ERROR


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("command", "exit_code"), [("chats list --json", OK), ("chats show x", BAD_INPUT)]
)
def test_narration_that_cannot_be_told_changes_nothing(
    command: str, exit_code: int, redirection: str, tmp_path: Path
):
    program = f'"{sys.executable}" -m safesteer_edge {command} {redirection}'
    environment = {**os.environ, "HOME": str(tmp_path)}
    ran = subprocess.run(program, shell=True, stdout=subprocess.PIPE, env=environment, text=True)
    assert ran.returncode == exit_code
    assert ran.stdout == ('{"chats": []}\n' if exit_code == OK else "")


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "safesteer_edge", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (OK, f"safesteer-edge {__version__}\n")
