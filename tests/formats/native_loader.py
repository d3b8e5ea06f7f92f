"""Loads files natively, one after the other, as a program of its own: some may kill it.

Usage: python -m tests.formats.native_loader model|projector|probe FILE…
It prints the index of each file before it touches it. What cannot be loaded is no failure here:
an error is what a damaged file should give; only a signal is not.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_MEMORY_LIMIT_BYTES = 8 << 30
_SECONDS_PER_RUN = 300


def load_model(path: Path) -> None:
    """Load a language model, and have it compute three tokens."""
    from tests.native_llama import decode, native_context, native_model, tokenize

    with native_model(path) as model:
        tokenize(model, b"a b", parse_special=True)
        with native_context(model) as context:
            decode(context, (0, 1, 2))


def projector_loader(model_path: Path) -> Callable[[Path], None]:
    """Return a function that loads a projector beside this model, and encodes a picture."""
    import llama_cpp

    from tests.native_llama import encode_image, native_model, native_projector

    pixels = np.zeros((60, 80, 3), dtype=np.uint8)

    def load(path: Path) -> None:
        with native_model(model_path) as model, native_projector(path, model) as projector:
            encode_image(projector, pixels, llama_cpp.llama_model_n_embd(model))

    return load


def load_probe(path: Path) -> None:
    """Make an onnxruntime session from the file's bytes and run it once."""
    import onnxruntime

    runtime: Any = onnxruntime
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


def main(kind: str, paths: list[str]) -> None:
    """Load every file, printing its index first and the memory used last."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        load = load_probe if kind == "probe" else load_model
        if kind != "probe":
            from tests.native_llama import silence_native_logs

            silence_native_logs()
        if kind == "projector":
            from tests.tiny_models import write_tiny_llama

            load = projector_loader(write_tiny_llama(Path(folder) / "model.gguf", n_layer=1))
        for index, path in enumerate(paths):
            print(f"> {index}", flush=True)
            try:
                load(Path(path))
            except Exception as error:
                print(f"# {type(error).__name__}", flush=True)
            else:
                print("# loaded", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
