"""Placeholder."""

KEPT = {}
