"""The files of a run folder: their names, and how they are read and written."""
