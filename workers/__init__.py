"""The built-in workers: data, models, the training loop, and the files written at the end.

They use only those parts of `washp2p` that any program may use, and nothing of `coordinator`.
"""
