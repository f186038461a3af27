"""The coordinator's state machine: events in, commands out. No I/O, no clock."""
