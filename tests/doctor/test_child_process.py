"""Whatever native code does to a child process, the parent gets an answer.

The real tasks run, in real processes; where something must be broken, a package of that name in
a folder of its own stands before the installed one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from safesteer_edge.doctor.children import (
    BundleFacts,
    ChildFailure,
    DriverFacts,
    LlamaFacts,
    OnnxRuntimeFacts,
    ask_child,
    bundle_facts,
    driver_facts,
    llama_facts,
    onnxruntime_facts,
)

LIMIT_S = 240.0
posix_only = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


@pytest.fixture
def replace_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package with this source before the installed one of the same name."""

    def replace(name: str, source: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))

    return replace


def failure(task: Callable[[], object], *, limit_s: float = LIMIT_S) -> ChildFailure:
    answer = ask_child(task, limit_s=limit_s)
    assert isinstance(answer, ChildFailure), answer
    return answer


def test_llama_cpp_reports_its_build():
    facts = ask_child(llama_facts, limit_s=LIMIT_S)
    assert isinstance(facts, LlamaFacts)
    assert facts.binding_version.startswith("0.3.")
    assert facts.cpu_features
    assert facts.avoids_extra_buffer_types == facts.has_amx


def test_onnxruntime_reports_its_providers():
    facts = ask_child(onnxruntime_facts, limit_s=LIMIT_S)
    assert isinstance(facts, OnnxRuntimeFacts)
    assert "CPUExecutionProvider" in facts.providers
    assert facts.files_written == ()
    assert not facts.n_sockets


def test_what_the_import_of_onnxruntime_leaves_is_reported(replace_package):
    source = """
        import socket
        from pathlib import Path
        __version__ = "9"
        _socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        _folder = Path.home() / ".cache" / "Microsoft"
        _folder.mkdir(parents=True)
        (_folder / "deviceid").touch()
        def disable_telemetry_events(): pass
        def get_available_providers(): return []
    """
    replace_package("onnxruntime", textwrap.dedent(source))
    facts = ask_child(onnxruntime_facts, limit_s=LIMIT_S)
    assert isinstance(facts, OnnxRuntimeFacts)
    assert facts.files_written == (".cache/Microsoft/deviceid",)
    if sys.platform != "win32":
        assert facts.n_sockets == 1


@posix_only
def test_an_illegal_instruction_is_reported_not_suffered(replace_package):
    replace_package("llama_cpp", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    answer = failure(llama_facts)
    assert answer.cause == "illegal instruction"
    assert "SIGILL" in answer.message


@posix_only
def test_a_crash_is_reported_with_the_last_thing_that_was_said(replace_package):
    replace_package(
        "llama_cpp",
        "import os\nos.write(2, b'first\\nGGML_ASSERT(\\x1b[31mx) failed\\n\\n')\nos.abort()",
    )
    answer = failure(llama_facts)
    assert answer.cause == "crash"
    assert answer.message == "the process ended with SIGABRT: GGML_ASSERT(x) failed"


def test_a_process_that_just_exits_is_a_crash(replace_package):
    replace_package("llama_cpp", "import os; os._exit(3)")
    assert failure(llama_facts) == ChildFailure("crash", "the process ended with exit code 3")


def test_a_hang_ends_at_the_time_limit(replace_package):
    replace_package("llama_cpp", "import time; time.sleep(600)")
    answer = failure(llama_facts, limit_s=1.0)
    assert (answer.cause, answer.message) == ("time limit", "no answer within 1 s")


def test_a_module_that_is_missing_is_named(replace_package):
    replace_package("onnxruntime", "import no_such_module")
    answer = failure(onnxruntime_facts)
    assert answer.cause == "missing module"
    assert "no_such_module" in answer.message


def test_an_exception_is_told_in_one_line(replace_package):
    replace_package("onnxruntime", "raise OSError('two\\nlines')")
    assert failure(onnxruntime_facts) == ChildFailure("error", "OSError: two lines")


def test_what_native_code_prints_does_not_spoil_the_reply(replace_package):
    replace_package(
        "onnxruntime",
        "import os\nos.write(1, b'{\"facts\": 1}\\nnoise without end')\n"
        "def disable_telemetry_events(): pass\n"
        "__version__ = '9'\ndef get_available_providers(): return ['XExecutionProvider']",
    )
    facts = ask_child(onnxruntime_facts, limit_s=LIMIT_S)
    assert isinstance(facts, OnnxRuntimeFacts)
    assert (facts.version, facts.providers) == ("9", ("XExecutionProvider",))


def test_the_current_folder_does_not_shadow_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    facts = ask_child(onnxruntime_facts, limit_s=LIMIT_S)
    assert isinstance(facts, OnnxRuntimeFacts)


def test_a_python_that_cannot_be_started_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "/nowhere/python" in failure(llama_facts).message


@pytest.mark.default_model
def test_the_default_bundle_loads_in_a_process_of_its_own():
    assert isinstance(ask_child(bundle_facts, limit_s=LIMIT_S), BundleFacts)


# -- the NVIDIA driver, against a library with its functions -------------------------------------

DRIVER_SOURCE = """
#include <string.h>
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuInit(unsigned int flags) { return INIT_STATUS; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    if (length < 16) return 1;
    strcpy(name, "NVIDIA Test 0");
    name[12] += device - 7;
    return 0;
}
"""


@pytest.fixture
def install_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compile a libcuda.so.1 whose cuInit returns this, for child processes to find."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")

    def install(init_status: int) -> None:
        source = tmp_path / "driver.c"
        source.write_text(DRIVER_SOURCE)
        library = tmp_path / "libcuda.so.1"
        options = ["-shared", "-fPIC", f"-DINIT_STATUS={init_status}"]
        subprocess.run([compiler, *options, "-o", str(library), str(source)], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return install


def driver() -> DriverFacts:
    facts = ask_child(driver_facts, limit_s=LIMIT_S)
    assert isinstance(facts, DriverFacts)
    return facts


def test_a_working_driver_names_its_gpus(install_driver):
    install_driver(0)
    facts = driver()
    assert facts == DriverFacts(True, None, "12.4", ("NVIDIA Test 0", "NVIDIA Test 1"))
    assert facts.has_gpu


def test_a_driver_without_a_gpu_is_no_problem(install_driver):
    install_driver(100)
    assert driver() == DriverFacts(True, None, "12.4", ())


def test_a_driver_that_does_not_start_says_so(install_driver):
    install_driver(999)
    facts = driver()
    assert facts.problem == "cuInit returns CUDA error 999"
    assert not facts.has_gpu
