"""The built-in worker (data, models, training loop, final models), simulation and studies.

The worker joins a run by the functions of `washp2p` that any program may use. No module here
imports `coordinator`.
"""
