"""Tiny models of every family that the engine is proven on, with projectors for those that see."""
