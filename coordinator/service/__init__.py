"""The coordinator's sockets, clock and files."""
