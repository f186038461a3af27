"""The built-in workers: data, models, the training loop, and what is written at the end.

Uses nothing of `washp2p` but what any program may use, and nothing of `coordinator`.
"""
