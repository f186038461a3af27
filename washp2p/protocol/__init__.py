"""What the coordinator and the workers agree on: messages, rosters, seeds, layout, times.

No torch, no NumPy, no sockets.
"""
