"""The papers' tables and figures, each made by one command: `washp2p study NAME`.

A study makes runs of several settings, with one or more seeds. It makes pictures, and a table in
the paper's layout with the paper's own numbers beside the measured ones. Finished runs are kept,
and every study that needs them uses them again.
"""
