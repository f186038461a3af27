"""The coordinator: a light process that hands out configuration, rosters and seeds.

It never sees a parameter and imports neither torch nor NumPy, nor anything of `workers`.
"""
