"""What lies on disk in a run folder."""
