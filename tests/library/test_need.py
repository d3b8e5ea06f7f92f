"""The arithmetic of memory against what llama.cpp itself says that it allocates."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from safesteer_edge.engine.context import ContextSettings, NativeContext
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.formats.gguf_header import GGML_TYPE_OF_KV, KV_TYPES, KvType
from safesteer_edge.library.memory_need import MemorySettings, memory_need, read_model_shape
from tests.tiny_models import write_tiny_llama
from tests.tiny_models.families.family import Family
from tests.tiny_models.families.table import FAMILIES
from tests.tiny_models.families.write import write_family

MIB = 1 << 20


def allocated(path: Path, settings: MemorySettings, caplog: pytest.LogCaptureFixture):
    """MiB that llama.cpp's log names, by the kind of buffer: KV, RS, output, compute."""
    from safesteer_edge.engine import native

    native.start_backend()
    native.lib.llama_log_set(native._forward_log, native.ctypes.c_void_p(0))
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="safesteer_edge.native"), NativeModel(path) as model:
        context = NativeContext(
            model,
            ContextSettings(
                n_ctx=settings.n_ctx,
                n_candidates=settings.n_sequences - 1,
                n_threads=1,
                n_batch=settings.n_batch,
                kv_type=GGML_TYPE_OF_KV[settings.kv_type],
            ),
        )
        context.close()
    sizes: dict[str, float] = {}
    for kind, size in re.findall(r"(\w+) buffer size\s*=\s*([\d.]+) MiB", caplog.text):
        # Buffers are reserved twice in the log, the second time as they stay; caches may be two.
        is_cache = kind in ("KV", "RS")
        sizes[kind] = sizes.get(kind, 0.0) + float(size) if is_cache else float(size)
    return sizes


@pytest.mark.parametrize("n_head_kv", [1, 2, 4])
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_the_cache_is_what_llama_cpp_makes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, n_head_kv: int, kv_type: KvType
):
    path = write_tiny_llama(tmp_path / "m.gguf", n_embd=128, n_head_kv=n_head_kv)
    settings = MemorySettings(n_ctx=1000, kv_type=kv_type, n_sequences=9)
    need = memory_need(read_model_shape(path), settings)
    found = allocated(path, settings, caplog)
    assert need.kv / MIB == pytest.approx(found["KV"], abs=0.01)
    assert need.output / MIB == pytest.approx(found["output"], abs=0.02)


def test_a_recurrent_state_is_what_llama_cpp_makes(
    tiny_mamba_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = MemorySettings(n_ctx=512, n_sequences=9)
    need = memory_need(read_model_shape(tiny_mamba_path), settings)
    assert need.kv == 0
    found = allocated(tiny_mamba_path, settings, caplog)
    assert need.state / MIB == pytest.approx(found["RS"], abs=0.01)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_cache_and_state_are_exact_in_every_family(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: Family
):
    path = write_family(tmp_path / "m.gguf", family)
    settings = MemorySettings(n_ctx=512, n_sequences=5)
    need = memory_need(read_model_shape(path), settings)
    found = allocated(path, settings, caplog)
    assert need.kv / MIB == pytest.approx(found.get("KV", 0.0), abs=0.02)
    assert need.state / MIB == pytest.approx(found.get("RS", 0.0), abs=0.01)


@pytest.mark.parametrize(
    ("n_embd", "n_ff", "n_ctx", "n_batch"),
    [
        (512, 2048, 4096, 512),
        (512, 2048, 16384, 512),
        (1024, 1024, 4096, 512),
        (512, 512, 512, 128),
    ],
)
def test_buffers_are_estimated_at_nine_tenths_to_half_as_much_again(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    n_embd: int,
    n_ff: int,
    n_ctx: int,
    n_batch: int,
):
    path = write_tiny_llama(
        tmp_path / "m.gguf", n_layer=2, n_embd=n_embd, n_head=8, n_ff=n_ff, quantization="Q8_0"
    )
    settings = MemorySettings(n_ctx=n_ctx, n_batch=n_batch)
    need = memory_need(read_model_shape(path), settings)
    found = allocated(path, settings, caplog)
    said = max(need.compute, need.logits) / MIB
    assert 0.9 * found["compute"] <= said <= 1.5 * found["compute"]


def test_weights_are_those_of_the_file(tiny_llama_path: Path, tiny_projector_path: Path):
    shape = read_model_shape(tiny_llama_path)
    assert shape.weight_bytes == pytest.approx(tiny_llama_path.stat().st_size, rel=0.05)
    assert len(shape.layers) == 4
    need = memory_need(shape, MemorySettings(512), tiny_projector_path.stat().st_size)
    assert need.projector == tiny_projector_path.stat().st_size


RESIDENT = """
import re, sys
from safesteer_edge.session.session import open_session
from safesteer_edge.session.settings import SessionSettings
guard, kv_type, n_ctx = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = SessionSettings(guard=guard, kv_type=kv_type, n_ctx=n_ctx, n_threads=1, max_tokens=4)
with open_session(settings) as session:
    for event in session.ask("Why is the sky blue? " * 20):
        pass
    status = open("/proc/self/status").read()
    print(int(re.search(r"VmRSS:\\s+(\\d+)", status)[1]) * 1024, session._runtime.plan.need.total)
"""


@pytest.mark.default_model
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("guard", "kv_type", "n_ctx"),
    [
        ("steer", "f16", 4096),
        pytest.param("off", "f16", 8192, marks=pytest.mark.slow),
        pytest.param("steer", "q8_0", 2048, marks=pytest.mark.slow),
    ],
)
def test_the_default_model_takes_as_much_as_was_said(guard: str, kv_type: str, n_ctx: int):
    ended = subprocess.run(
        [sys.executable, "-c", RESIDENT, guard, kv_type, str(n_ctx)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    resident, said = map(int, ended.stdout.split())
    print(f"{guard} {kv_type} {n_ctx}: said {said / MIB:.0f}, resident {resident / MIB:.0f} MiB")
    assert said == pytest.approx(resident, rel=0.15)
