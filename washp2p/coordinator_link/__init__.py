"""A worker's connection to the coordinator."""
