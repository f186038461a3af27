"""What shows a run while it goes on: terminal, status page, metrics, curves."""
