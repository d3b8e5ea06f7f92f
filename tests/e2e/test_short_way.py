"""A newcomer can follow one question through the code: it crosses few files."""

from __future__ import annotations

import subprocess
import sys

import pytest

MAX_FILES = 40
# Calls are counted, not imports: a file that is crossed has code that a question runs.
TRACED = """
import sys, threading
from pathlib import Path
import safesteer_edge
from safesteer_edge import TextDelta, open_session

root, crossed = str(Path(safesteer_edge.__file__).parent), set()

def count(frame, event, _argument):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(root) and frame.f_code.co_name != "<module>":
        crossed.add(name)

with open_session() as session:
    threading.setprofile(count)
    sys.setprofile(count)
    for event in session.ask("Why is the sky blue?"):
        if isinstance(event, TextDelta):
            break
    sys.setprofile(None)
print(*sorted(crossed), sep="\\n")
"""


@pytest.mark.default_model
def test_a_question_crosses_few_files_on_its_way_to_the_first_word():
    ran = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    crossed = ran.stdout.split()
    assert any(name.endswith("guard/decoding.py") for name in crossed)
    assert len(crossed) <= MAX_FILES, ran.stdout
