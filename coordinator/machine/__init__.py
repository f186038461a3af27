"""The coordinator's state machine: it takes events and yields commands. No I/O, no clock."""
