"""Tests of the library of models."""
