"""What was fitted for the baselines is read back as it was, or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.baselines import (
    NO_BASELINES,
    FittedBaselines,
    load_baselines,
    save_baselines,
)

FITTED = FittedBaselines(np.ones((2, 3), dtype=np.float32), {"chosen": "x"}, 0.25, 0.5)


def test_what_was_kept_is_read_back(tmp_path: Path):
    assert load_baselines(tmp_path) is None
    for fitted in (NO_BASELINES, FITTED):
        save_baselines(fitted, tmp_path)
        found = load_baselines(tmp_path)
        assert found is not None and found.facts() == fitted.facts()
        np.testing.assert_array_equal(found.directions, fitted.directions)


@pytest.mark.parametrize("limit", ["NaN", "Infinity", "1e999", "-0.1", "1.1", '"0.5"'])
def test_a_limit_that_is_no_score_is_refused(tmp_path: Path, limit: str):
    save_baselines(FITTED, tmp_path)
    path = tmp_path / "baselines.json"
    path.write_text(re.sub(r'("response_limit": )[^,]*', rf"\g<1>{limit}", path.read_text()))
    with pytest.raises(InputError, match=r"cannot use the baselines.*remove baselines\.json"):
        load_baselines(tmp_path)


def test_directions_that_are_not_finite_are_refused(tmp_path: Path):
    save_baselines(FITTED, tmp_path)
    np.savez(tmp_path / "baselines.npz", directions=np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="out of range"):
        load_baselines(tmp_path)
