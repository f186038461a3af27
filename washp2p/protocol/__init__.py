"""What the coordinator and the workers agree on: messages, rosters, seeds, layout, waiting
times.

The modules import no torch, no NumPy and no sockets.
"""
