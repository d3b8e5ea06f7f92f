"""PyTorch's modules, through its own files and as objects, score the same in ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from safesteer_edge.converters.probe_conversion import (
    ConversionSettings,
    convert_module,
    convert_probe,
)
from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.probe_onnx import SourceOptions
from tests.converters.probe_parity import N_FEATURES, assert_parity, wide_states

STATES = wide_states()
N = N_FEATURES


def sequential(*layers: nn.Module) -> nn.Sequential:
    """Layers with the weights that PyTorch gives them, the same each time."""
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.2)
    return nn.Sequential(*layers).eval()


def probabilities(module: nn.Module, states: Any) -> Any:
    """PyTorch's own score of class 1; the module gives logits."""
    with torch.no_grad():
        logits = module(torch.as_tensor(states))
    if logits.shape[1] == 2:
        return torch.softmax(logits, dim=1)[:, 1].numpy()
    return torch.sigmoid(logits)[:, 0].numpy()


MODULES = {
    "linear": (sequential(nn.Linear(N, 1)), None),
    "relu": (sequential(nn.Linear(N, 8), nn.ReLU(), nn.Linear(8, 1)), "relu,none"),
    "gelu": (sequential(nn.Linear(N, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 1)), "gelu"),
    "gelu by tanh": (
        sequential(nn.Linear(N, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 1)),
        "gelu_tanh",
    ),
    "silu": (sequential(nn.Linear(N, 8), nn.SiLU(), nn.Linear(8, 1)), "silu,none"),
    "tanh": (sequential(nn.Linear(N, 8), nn.Tanh(), nn.Linear(8, 1)), "tanh,none"),
    "sigmoid": (sequential(nn.Linear(N, 8), nn.Sigmoid(), nn.Linear(8, 1)), "sigmoid,none"),
    "no bias": (sequential(nn.Linear(N, 1, bias=False)), None),
    "norm first": (
        sequential(nn.LayerNorm(N), nn.Linear(N, 8), nn.ReLU(), nn.Linear(8, 1)),
        "none,relu,none",
    ),
    "activation after norm": (
        sequential(nn.Linear(N, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 1)),
        "none,silu,none",
    ),
    "twelve layers": (
        sequential(*[nn.Linear(N, N) for _ in range(11)], nn.Linear(N, 1)),
        ",".join(["none"] * 12),
    ),
}


def converted(source: Path, activations: str | None, **options: Any) -> Path:
    output = source.parent / "probe.onnx"
    listed = tuple(activations.split(",")) if activations else None
    convert_probe(source, ConversionSettings(output), SourceOptions(activations=listed, **options))
    return output


@pytest.mark.parametrize("name", MODULES)
def test_a_state_dict_in_safetensors_scores_the_same(name: str, tmp_path: Path):
    module, activations = MODULES[name]
    save_file(module.state_dict(), tmp_path / "probe.safetensors")
    output = converted(tmp_path / "probe.safetensors", activations)
    assert_parity(output, STATES, probabilities(module, STATES))


@pytest.mark.parametrize("name", MODULES)
def test_a_state_dict_in_a_pt_file_scores_the_same(name: str, tmp_path: Path):
    module, activations = MODULES[name]
    torch.save(module.state_dict(), tmp_path / "probe.pt")
    output = converted(tmp_path / "probe.pt", activations)
    assert_parity(output, STATES, probabilities(module, STATES))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_given_as_an_object_scores_the_same(name: str, tmp_path: Path):
    module, _ = MODULES[name]
    convert_module(module, ConversionSettings(tmp_path / "probe.onnx"))
    assert_parity(tmp_path / "probe.onnx", STATES, probabilities(module, STATES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_other_precisions_are_read_as_they_are(dtype: torch.dtype, suffix: str, tmp_path: Path):
    module = sequential(nn.Linear(N, 1)).to(dtype)
    source = tmp_path / f"probe.{suffix}"
    torch.save(module.state_dict(), source) if suffix == "pt" else save_file(
        module.state_dict(), source
    )
    assert_parity(converted(source, None), STATES, probabilities(module.float(), STATES))


def test_a_checkpoint_with_the_state_dict_inside_is_read(tmp_path: Path):
    module, activations = MODULES["relu"]
    wrapped = {"epoch": 3, "lr": 1e-3, "betas": (0.9, 0.999), "state_dict": module.state_dict()}
    torch.save(wrapped, tmp_path / "probe.pth")
    output = converted(tmp_path / "probe.pth", activations)
    assert_parity(output, STATES, probabilities(module, STATES))


def test_parameters_and_views_into_a_storage_are_read(tmp_path: Path):
    whole = torch.randn(3, N)
    weights = {"weight": nn.Parameter(whole.T[:, 1:2].T), "bias": nn.Parameter(torch.zeros(1))}
    torch.save(weights, tmp_path / "probe.pt")
    expected = torch.sigmoid(torch.as_tensor(STATES) @ whole[1])
    assert_parity(converted(tmp_path / "probe.pt", None), STATES, expected.numpy())


class StandardisedProbe(nn.Module):
    """What people write: buffers for the standardiser and the PCA, then a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(STATES.mean(axis=0)))
        self.register_buffer("std", torch.as_tensor(STATES.std(axis=0)))
        self.register_buffer("components", torch.linalg.qr(torch.randn(N, 5))[0].T.contiguous())
        self.net = sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.net(((states - self.mean) / self.std) @ self.components.T)  # type: ignore[operator]


class CentredProbe(nn.Module):
    """A standardiser and a PCA that has a mean of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scaler, self.pca = nn.Module(), nn.Module()
        self.scaler.register_buffer("mean", torch.as_tensor(STATES.mean(axis=0)))
        self.scaler.register_buffer("scale", torch.as_tensor(STATES.std(axis=0)))
        self.pca.register_buffer("mean", torch.randn(N))
        self.pca.register_buffer("components", torch.linalg.qr(torch.randn(N, 5))[0].T.contiguous())
        self.out = sequential(nn.Linear(5, 1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scaled = (states - self.scaler.mean) / self.scaler.scale  # type: ignore[operator]
        return self.out((scaled - self.pca.mean) @ self.pca.components.T)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kind", "activations"), [(StandardisedProbe, "gelu"), (CentredProbe, None)]
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_standardiser_and_pca_buffers_are_used(
    kind: type[nn.Module], activations: str | None, suffix: str, tmp_path: Path
):
    torch.manual_seed(0)
    module = kind().eval()
    source = tmp_path / f"probe.{suffix}"
    torch.save(module.state_dict(), source) if suffix == "pt" else save_file(
        module.state_dict(), source
    )
    assert_parity(converted(source, activations), STATES, probabilities(module, STATES))


def test_activations_can_be_the_files_own(tmp_path: Path):
    module, activations = MODULES["silu"]
    assert activations is not None
    source = tmp_path / "probe.safetensors"
    save_file(module.state_dict(), source, metadata={"activations": activations})
    assert_parity(converted(source, None), STATES, probabilities(module, STATES))


def test_names_without_numbers_need_their_order(tmp_path: Path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = sequential(nn.Linear(N, 4), nn.Linear(4, 1))

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.narrow(torch.relu(self.wide(states)))

    module = Named()
    source = tmp_path / "probe.safetensors"
    save_file(module.state_dict(), source)
    with pytest.raises(InputError, match=r"cannot tell the order.*--modules"):
        converted(source, "relu")
    output = converted(source, "relu", modules=("wide", "narrow"))
    assert_parity(output, STATES, probabilities(module, STATES))


def test_two_outputs_need_to_be_told_apart(tmp_path: Path):
    module = sequential(nn.Linear(N, 8), nn.ReLU(), nn.Linear(8, 2))
    source = tmp_path / "probe.safetensors"
    save_file(module.state_dict(), source)
    output = tmp_path / "probe.onnx"
    options = SourceOptions(activations=("relu", "softmax"))
    with pytest.raises(InputError, match=r"two outputs.*--harmful-class"):
        convert_probe(source, ConversionSettings(output), options)
    for harmful_class in (0, 1):
        settings = ConversionSettings(output, harmful_class=harmful_class)
        convert_probe(source, settings, options)
        expected = torch.softmax(module(torch.as_tensor(STATES)), 1)[:, harmful_class]
        assert_parity(output, STATES, expected.detach().numpy())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"0.weight": torch.ones(4, N), "0.bias": torch.ones(4)}, "ends in 4 numbers"),
        ({"weight": torch.full((1, N), torch.nan), "bias": torch.ones(1)}, "not finite"),
        ({"weight": torch.full((1, N), torch.inf), "bias": torch.ones(1)}, "not finite"),
        (nn.BatchNorm1d(N).state_dict(), "belong to no layer"),
        (nn.Conv1d(2, 1, 3).state_dict(), "has shape"),
        (nn.Embedding(4, N).state_dict() | {"gamma": torch.ones(3)}, "belong to no layer"),
        ({"mean": torch.ones(N)}, "it has no layers"),
        ({"0.weight": torch.ones(4, N), "1.weight": torch.ones(1, 5)}, "expected \\(4, n_out\\)"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_no_probe_is_refused(
    tensors: dict[str, torch.Tensor], reason: str, suffix: str, tmp_path: Path
):
    source = tmp_path / f"probe.{suffix}"
    torch.save(tensors, source) if suffix == "pt" else save_file(tensors, source)
    with pytest.raises(ProbeFileError, match=reason):
        converted(source, "relu,none" if "1.weight" in tensors else None)
    assert list(tmp_path.iterdir()) == [source]


def test_missing_activations_are_asked_for(tmp_path: Path):
    save_file(MODULES["relu"][0].state_dict(), tmp_path / "probe.safetensors")
    with pytest.raises(InputError, match=r"0 \(Linear\), 2 \(Linear\).*--activations relu,none"):
        converted(tmp_path / "probe.safetensors", None)
    with pytest.raises(InputError, match="'swish' is none"):
        converted(tmp_path / "probe.safetensors", "swish,none")
    with pytest.raises(InputError, match="there are 2 layers"):
        converted(tmp_path / "probe.safetensors", "relu,relu,relu,none")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (StandardisedProbe(), "class of its own"),
        (nn.Sequential(nn.Linear(N, 4), nn.ELU(), nn.Linear(4, 1)), "ELU is not translated"),
        (nn.Sequential(nn.Linear(N, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 1)), "one activation"),
        (nn.Sequential(nn.ReLU(), nn.Linear(N, 1)), "follows no layer"),
        (nn.Sequential(nn.BatchNorm1d(N), nn.Linear(N, 1)), "not translated|follows no layer"),
    ],
)
def test_a_module_that_is_not_translated_is_refused(module: nn.Module, reason: str, tmp_path: Path):
    with pytest.raises(ProbeFileError, match=reason):
        convert_module(module, ConversionSettings(tmp_path / "probe.onnx"))


def test_a_probe_as_wide_as_a_large_model_scores_the_same(tmp_path: Path):
    module = sequential(nn.Linear(4096, 64), nn.GELU(), nn.Linear(64, 1))
    save_file(module.state_dict(), tmp_path / "probe.safetensors")
    states = np.random.default_rng(0).standard_normal((8, 4096)).astype(np.float32)
    output = converted(tmp_path / "probe.safetensors", "gelu")
    assert_parity(output, states, probabilities(module, states))


def test_the_module_is_left_in_the_mode_it_was_in(tmp_path: Path):
    module = sequential(nn.Linear(N, 4), nn.ReLU(), nn.Dropout(0.9), nn.Linear(4, 1)).train()
    convert_module(module, ConversionSettings(tmp_path / "probe.onnx"))
    assert module.training
    expected = probabilities(module.eval(), STATES)
    assert_parity(tmp_path / "probe.onnx", STATES, np.asarray(expected))
