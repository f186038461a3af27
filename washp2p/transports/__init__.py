"""Transports move messages between members. Each kind has its own module."""
