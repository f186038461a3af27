"""Derives from a round's seed who sends which values to whom. NumPy, no torch, no I/O."""
