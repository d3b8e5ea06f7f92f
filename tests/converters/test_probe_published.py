"""Probes as AutoSteer and RDS publish them score as those projects' own code does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from safesteer_edge.converters.probe_conversion import (
    ConversionSettings,
    convert_probe,
)
from safesteer_edge.errors import InputError
from safesteer_edge.formats.probe_onnx import SourceOptions
from tests.converters.probe_parity import N_FEATURES, assert_parity, wide_states

STATES = wide_states()
N = N_FEATURES


def test_an_autosteer_prober_is_read_with_its_own_polarity(tmp_path: Path):
    class LinearProber(nn.Module):
        """As AutoSteer's rater.py has it: ModuleList of Linear, ReLU, Linear; softmax."""

        def __init__(self) -> None:
            super().__init__()
            self.softmax = nn.Softmax(dim=-1)
            self.layers = nn.ModuleList([nn.Linear(N, 64), nn.ReLU(), nn.Linear(64, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.softmax(x)

    torch.manual_seed(0)
    prober = LinearProber().eval()
    torch.save(prober.state_dict(), tmp_path / "epoch_9.pt")
    output, options = tmp_path / "probe.onnx", SourceOptions(kind="autosteer")
    with pytest.raises(InputError, match="0 = toxic: --harmful-class 0"):
        convert_probe(tmp_path / "epoch_9.pt", ConversionSettings(output), options)
    convert_probe(tmp_path / "epoch_9.pt", ConversionSettings(output, harmful_class=0), options)
    toxicity = prober(torch.as_tensor(STATES))[:, 0]  # what its rate() returns
    assert_parity(output, STATES, toxicity.detach().numpy())


def test_rds_pair_of_files_scores_as_its_code_does(tmp_path: Path):
    torch.manual_seed(0)
    mean, basis = torch.as_tensor(STATES.mean(axis=0)), torch.linalg.qr(torch.randn(N, N))[0]
    weight, bias = torch.randn(3, 1, 4), torch.randn(3, 1)
    save_file({"mean": mean, "V": basis.contiguous()}, tmp_path / "transform.safetensors")
    save_file({"weight": weight, "bias": bias}, tmp_path / "harmfulness.safetensors")
    output = tmp_path / "probe.onnx"
    with pytest.raises(InputError, match="harmful = 0: --harmful-class 0"):
        convert_probe(tmp_path, ConversionSettings(output))
    harmless = nn.Linear(4, 1)
    harmless.load_state_dict({"weight": weight.mean(dim=0), "bias": bias.mean(dim=0)})
    logits = harmless(torch.matmul(torch.as_tensor(STATES) - mean, basis[:, :4]))
    expected = 1 - torch.sigmoid(logits)[:, 0].detach().numpy()
    for source in (tmp_path, tmp_path / "transform.safetensors"):
        convert_probe(source, ConversionSettings(output, harmful_class=0))
        assert_parity(output, STATES, expected)
    (tmp_path / "harmfulness.safetensors").unlink()
    with pytest.raises(InputError, match="RDS's probe is a pair"):
        convert_probe(tmp_path, ConversionSettings(output))
