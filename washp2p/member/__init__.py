"""The life of one member: join, start, rounds, checkpoints, average, leave."""
