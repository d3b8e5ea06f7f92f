"""The oracle for laws is itself right on functions whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.guard.exact_law import EDGE_ERROR, exact_law


def test_a_step_function_of_one_number():
    law = exact_law(lambda rng: int(rng.random() * 3), 3)
    assert law == pytest.approx(np.full(3, 1 / 3), abs=4 * EDGE_ERROR)


def test_a_rejection_and_what_follows_it():
    def outcome(rng: np.random.Generator) -> int:
        if rng.random() < 0.3:
            return 2
        return 0 if rng.random() < 0.25 else 1

    assert exact_law(outcome, 3) == pytest.approx([0.175, 0.525, 0.3], abs=4 * EDGE_ERROR)


def test_a_value_that_comes_back():
    law = exact_law(lambda rng: int(0.25 <= rng.random() < 0.75), 2)
    assert law == pytest.approx([0.5, 0.5], abs=4 * EDGE_ERROR)


def test_no_number_at_all():
    assert exact_law(lambda _rng: 1, 2).tolist() == [0.0, 1.0]
