"""From a round's seed to who sends which values to whom. NumPy, no torch, no I/O."""
