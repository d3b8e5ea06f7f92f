"""What fits: GPU layers, refusals, and what they say would fit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.engine.native import gpu_memory
from safesteer_edge.errors import SettingsError
from safesteer_edge.library.memory_need import (
    LayerShape,
    MemorySettings,
    ModelShape,
    read_model_shape,
)
from safesteer_edge.library.memory_plan import Machine, explain_plan, plan_memory
from safesteer_edge.session import runtime
from safesteer_edge.session import runtime as runtime_module
from safesteer_edge.session.session import open_session
from safesteer_edge.session.settings import SessionSettings
from tests.tiny_models import write_tiny_llama

MIB = 1 << 20
GIB = 1 << 30
# 32 blocks of 100 MiB, a cache of 128 KiB a token in F16: as of a model of 7 billion parameters.
SEVEN = ModelShape(
    name="seven.gguf",
    layers=(LayerShape(100 * MIB, 2048),) * 32,
    input_bytes=70 * MIB,
    output_bytes=100 * MIB,
    has_tied_output=False,
    n_embd=4096,
    n_ff=11008,
    n_vocab=32000,
    n_ctx_train=131072,
    sliding_window=0,
    key_widths=(128, 128),
)
SETTINGS = MemorySettings(n_ctx=4096)


@dataclass(frozen=True)
class Card:
    free_bytes: int
    name: str = "Card"
    is_integrated: bool = False


def machine(free_mib: int, *cards: Card) -> Machine:
    return Machine(free_mib * MIB, "available", cards)


def test_a_model_that_fits_is_planned_on_the_cpu_where_there_is_no_gpu():
    plan = plan_memory(SEVEN, SETTINGS, machine(8192))
    assert (plan.n_gpu_layers, plan.gpu_bytes, plan.is_tight) == (0, 0, False)
    assert plan.need.kv == 4096 * 128 * 1024
    assert plan.cpu_bytes == plan.need.total


def test_all_layers_go_to_a_gpu_with_room():
    plan = plan_memory(SEVEN, SETTINGS, machine(1024, Card(24 * GIB)))
    assert plan.n_gpu_layers == 33
    assert plan.gpu_bytes > SEVEN.weight_bytes - SEVEN.input_bytes + plan.need.kv
    assert plan.cpu_bytes < 400 * MIB


def test_as_many_layers_as_fit_go_to_a_small_gpu():
    card = Card(3 * GIB)
    plan = plan_memory(SEVEN, SETTINGS, machine(8192, card))
    assert 0 < plan.n_gpu_layers < 33
    assert plan.gpu_bytes <= card.free_bytes
    more = plan_memory(SEVEN, SETTINGS, machine(8192, card), n_gpu_layers=plan.n_gpu_layers + 4)
    assert more.gpu_bytes > card.free_bytes - 400 * MIB  # those asked for are not second-guessed


def test_two_gpus_share_the_layers():
    alone = plan_memory(SEVEN, SETTINGS, machine(8192, Card(3 * GIB)))
    both = plan_memory(SEVEN, SETTINGS, machine(8192, Card(3 * GIB), Card(3 * GIB)))
    assert both.n_gpu_layers > alone.n_gpu_layers


def test_an_integrated_gpu_frees_no_memory():
    plan = plan_memory(SEVEN, SETTINGS, machine(8192, Card(8 * GIB, is_integrated=True)))
    assert plan.n_gpu_layers == 33
    assert plan.cpu_bytes == plan.need.total


def test_a_longer_context_leaves_room_for_fewer_layers():
    short = plan_memory(SEVEN, SETTINGS, machine(16384, Card(4 * GIB)))
    long = plan_memory(SEVEN, MemorySettings(n_ctx=32768), machine(16384, Card(4 * GIB)))
    small = MemorySettings(n_ctx=32768, kv_type="q8_0")
    assert long.n_gpu_layers < short.n_gpu_layers
    assert plan_memory(SEVEN, small, machine(16384, Card(4 * GIB))).n_gpu_layers > long.n_gpu_layers


@pytest.mark.parametrize("free_mib", [3500, 3700, 4000, 5000])
def test_a_refusal_names_the_largest_that_fits_and_that_is_so(free_mib: int):
    wanted = MemorySettings(n_ctx=32768)
    with pytest.raises(SettingsError, match="does not fit into memory") as caught:
        plan_memory(SEVEN, wanted, machine(free_mib))
    offers = re.findall(r"--ctx (\d+)(?: --kv-type (q\w+))?", str(caught.value).split(";")[1])
    assert offers
    for n_ctx, kv_type in offers:
        settings = replace(wanted, n_ctx=int(n_ctx), kv_type=kv_type or "f16")
        plan_memory(SEVEN, settings, machine(free_mib))
        if int(n_ctx) < wanted.n_ctx:
            larger = replace(settings, n_ctx=int(n_ctx) + 256)
            with pytest.raises(SettingsError):
                plan_memory(SEVEN, larger, machine(free_mib))


def test_where_no_context_fits_a_smaller_quantization_is_named():
    with pytest.raises(SettingsError, match="no context of it fits: take a smaller quantization"):
        plan_memory(SEVEN, SETTINGS, machine(2000))


def test_what_fits_only_by_its_exact_parts_is_tight():
    exact = plan_memory(SEVEN, SETTINGS, machine(99999)).need.exact
    plan = plan_memory(SEVEN, SETTINGS, Machine(exact + MIB, "available"))
    assert plan.is_tight
    assert any("tight" in line for line in explain_plan(plan))


def test_nothing_is_refused_where_it_is_not_known_what_is_free():
    plan = plan_memory(SEVEN, SETTINGS, Machine(None, ""))
    assert not plan.is_tight
    assert any("not known" in line for line in explain_plan(plan))


def test_a_cache_type_that_the_heads_do_not_fill_is_refused():
    odd = replace(SEVEN, key_widths=(80, 80))
    with pytest.raises(SettingsError, match="not a multiple of 32; use --kv-type f16"):
        plan_memory(odd, MemorySettings(4096, "q8_0"), machine(99999))


def test_a_runtime_refuses_before_it_loads_anything(
    tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def must_not_load(*_arguments: object, **_options: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(runtime, "this_machine", lambda: Machine(1000, "available"))
    monkeypatch.setattr(runtime_module, "NativeModel", must_not_load)
    with pytest.raises(SettingsError, match=r"tiny-llama\.gguf' does not fit into memory"):
        open_session(SessionSettings(model=str(tiny_llama_path), guard="off"))


def test_a_tight_runtime_warns(tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch):
    free = Machine(8 * MIB, "available")
    monkeypatch.setattr(runtime, "this_machine", lambda: free)
    settings = SessionSettings(model=str(tiny_llama_path), guard="off", n_ctx=256, n_threads=1)
    with open_session(settings) as session:
        assert any("memory is tight" in line for line in session.info.warnings)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_a_session_runs_with_every_cache_type(tmp_path: Path, kv_type):
    path = write_tiny_llama(tmp_path / "m.gguf", n_embd=128)
    settings = SessionSettings(
        model=str(path), guard="off", kv_type=kv_type, n_ctx=256, n_threads=1, max_tokens=4
    )
    with open_session(settings) as session:
        assert list(session.ask("Hello"))


def test_settings_refuse_another_cache_type():
    with pytest.raises(SettingsError, match="kv_type is 'q5_0'"):
        SessionSettings(kv_type="q5_0")  # pyright: ignore[reportArgumentType]  # what is tested


def test_the_command_prints_the_arithmetic(
    tiny_llama_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["models", "fit", str(tiny_llama_path), "--ctx", "1000"]) == OK
    out = capsys.readouterr().out
    n_numbers = read_model_shape(tiny_llama_path).kv_width
    assert f"1024 tokens × {n_numbers} numbers in f16" in out
    assert "--ctx 1000 is rounded up to 1024" in out
    assert main(["models", "fit", str(tiny_llama_path), "--json"]) == OK
    value = json.loads(capsys.readouterr().out)
    assert value["need_bytes"]["kv"] == n_numbers * 2 * value["settings"]["n_ctx"]


def test_the_command_ends_with_2_where_it_does_not_fit(
    tiny_llama_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runtime, "this_machine", lambda: Machine(1000, "available"))
    assert main(["models", "fit", str(tiny_llama_path)]) == BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_build_for_the_cpu_has_no_gpu_and_one_for_a_gpu_says_what_is_free():
    for gpu in gpu_memory():
        assert gpu.name
        assert 0 < gpu.free_bytes <= gpu.total_bytes
