"""Checks say what to do exactly when something is wrong, and exceptions go no further."""

from __future__ import annotations

from typing import NoReturn

import pytest

from safesteer_edge.doctor.check import Check, isolated, ok
from safesteer_edge.errors import ModelFileError


def raising(error: Exception):
    def examine() -> NoReturn:
        raise error

    return examine


def test_what_is_found_passes_through():
    found = [ok("memory", "plenty")]
    assert isolated("memory", lambda: found) == found


def test_an_exception_is_a_failed_check():
    (check,) = isolated("memory", raising(ZeroDivisionError("division\nby zero")))
    assert (check.name, check.status) == ("memory", "fail")
    assert check.finding == "unexpected ZeroDivisionError: division by zero"
    assert check.remedy
    assert "--verbose doctor" in check.remedy


def test_our_own_errors_bring_their_remedy_along():
    (check,) = isolated("model", raising(ModelFileError("cannot load 'm': bad; get it again")))
    assert (check.finding, check.remedy) == ("cannot load 'm': bad", "get it again")


def test_an_own_error_without_a_remedy_still_gets_one():
    (check,) = isolated("model", raising(ModelFileError("cannot load 'm'")))
    assert check.finding == "cannot load 'm'"
    assert check.remedy


def test_a_missing_module_points_at_the_packages():
    (check,) = isolated("folders", raising(ModuleNotFoundError("No module named 'platformdirs'")))
    assert "platformdirs" in check.finding
    assert check.remedy
    assert "packages" in check.remedy


@pytest.mark.parametrize(("status", "remedy"), [("ok", "do it"), ("warn", None), ("fail", None)])
def test_a_check_has_a_remedy_exactly_if_it_is_not_ok(status, remedy):
    with pytest.raises(ValueError, match="remedy"):
        Check("name", status, "finding", remedy)
