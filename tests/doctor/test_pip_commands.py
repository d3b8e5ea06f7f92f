"""The commands are words that a shell gives back unchanged, for this very Python."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from safesteer_edge.processes.pip_commands import build_llama_command, install_command, quoted

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="reads the commands with a POSIX shell's rules"
)


@pytest.mark.parametrize("word", ["a b", "numpy>=1.26", "x[cuda,cudnn]==1", "a;b", 'a"b', "a$b\\c"])
def test_a_shell_reads_a_quoted_word_back(word: str):
    assert shlex.split(quoted(word)) == [word]


def test_plain_words_stay_readable():
    assert quoted("llama-cpp-python==0.3.36") == "llama-cpp-python==0.3.36"


def test_the_command_names_this_python_unless_the_shell_finds_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("PATH", "/nowhere")
    assert shlex.split(install_command("numpy"))[0] == sys.executable
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert install_command("numpy") == f"{Path(sys.executable).name} -m pip install numpy"


def test_a_build_takes_no_cached_wheel_and_passes_its_options():
    words = shlex.split(build_llama_command("0.3.36", "GGML_CUDA=on", "GGML_NATIVE=on"))
    assert words[1:3] == ["-m", "pip"]
    assert words[3:] == [
        "install",
        "--force-reinstall",
        "--no-deps",
        "--no-cache-dir",
        "--no-binary=llama-cpp-python",
        "-C",
        "cmake.args=-DGGML_CUDA=on;-DGGML_NATIVE=on",
        "llama-cpp-python==0.3.36",
    ]
