"""Tests of the arithmetic of memory."""
