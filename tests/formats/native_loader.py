"""Loads files natively, one after the other, in a process of its own: some may kill it.

An error is what a damaged file should give, and is no failure here; only a signal is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[2]
_MEMORY_LIMIT_BYTES = 8 << 30
_N_PIXELS = (60, 80)


@dataclass(frozen=True, slots=True)
class NativeOutcome:
    """What became of the files: how many loaded and ran, and which one ended the process."""

    n_loaded: int
    killer: Path | None
    last_words: str


def load_natively(kind: str, paths: Sequence[Path]) -> NativeOutcome:
    """Load every file in a child process, until one kills it.

    kind: 'model' (llama.cpp loads it, writes any text in tokens and computes three), 'projector'
    (libmtmd loads it beside a model and encodes a picture) or 'probe' (onnxruntime runs it once).
    """
    listing = "\n".join(map(str, paths))
    result = subprocess.run(
        [sys.executable, "-m", "tests.formats.native_loader", kind],
        cwd=REPOSITORY,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # or it starts a debugger
        input=listing,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = result.stdout.splitlines()
    started = [int(line.removeprefix("> ")) for line in lines if line.startswith("> ")]
    is_killed = result.returncode < 0
    assert is_killed or result.returncode == 0, result.stderr
    assert is_killed or len(started) == len(paths)
    killer = paths[started[-1]] if is_killed and started else None
    return NativeOutcome(lines.count("# loaded"), killer, result.stderr[-500:])


def _any_text() -> bytes:
    """Every byte of UTF-8, and what tokenizers split text at."""
    characters = [*range(0x800), *range(0x800, 0xD800, 991), *range(0xE000, 0x110000, 9_973)]
    return ("a  b\t\tc\n\n\n d\r\n 12345 don't \0" + "".join(map(chr, characters))).encode()


def _load_model(path: Path) -> None:
    import llama_cpp

    from tests.native_llama import decode, detokenize, native_context, native_model, tokenize

    with native_model(path) as model:
        vocab: Any = llama_cpp.llama_model_get_vocab(model)
        n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        for is_trusted in (False, True):
            token_ids = tokenize(model, _any_text(), parse_special=is_trusted)
            assert all(0 <= token_id < n_vocab for token_id in token_ids)
        for token_id in range(n_vocab):
            detokenize(model, [token_id])
        with native_context(model) as context:
            decode(context, (0, 1, 2))


def _projector_loader(model_path: Path) -> Callable[[Path], None]:
    import llama_cpp

    from tests.native_llama import encode_image, native_model, native_projector

    pixels = np.zeros((*_N_PIXELS, 3), dtype=np.uint8)

    def load(path: Path) -> None:
        with native_model(model_path) as model, native_projector(path, model) as projector:
            encode_image(projector, pixels, llama_cpp.llama_model_n_embd(model))

    return load


def _load_probe(path: Path) -> None:
    from safesteer_edge.processes.native_libraries import import_onnxruntime

    runtime = import_onnxruntime()
    runtime.set_default_logger_severity(4)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {
        node.name: np.ones([size if isinstance(size, int) else 2 for size in node.shape], "f4")
        for node in session.get_inputs()
    }
    session.run(None, inputs)


def _main(kind: str, paths: Sequence[str]) -> None:
    """Load every file, printing its index before it is touched."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        load = _load_probe if kind == "probe" else _load_model
        if kind != "probe":
            from tests.native_llama import silence_native_logs

            silence_native_logs()
        if kind == "projector":
            from tests.tiny_models import write_tiny_llama

            load = _projector_loader(write_tiny_llama(Path(folder) / "model.gguf", n_layer=1))
        for index, path in enumerate(paths):
            print(f"> {index}", flush=True)
            try:
                load(Path(path))
            except Exception as error:  # any Python error is a survived file
                print(f"# {type(error).__name__}", flush=True)
            else:
                print("# loaded", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.stdin.read().splitlines())
