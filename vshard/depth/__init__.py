"""Frames -> depth, near = 1."""
