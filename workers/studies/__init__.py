"""The laboratory: the papers' tables and figures, one command each (`washp2p study NAME`).

A study is runs of some settings over some seeds, a table in the paper's layout with the paper's own
numbers beside, and pictures. Runs are kept and used again by every study that wants them.
"""
