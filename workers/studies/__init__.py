"""The laboratory: the papers' tables and figures, one command each (`washp2p study NAME`).

A study runs some settings with some seeds. It makes pictures, and a table in the paper's layout
with the paper's own numbers beside the measured ones. Finished runs are kept; every study that
needs them uses them again.
"""
