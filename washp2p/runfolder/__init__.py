"""The files of a run folder: what lies where, reading and writing."""
