"""Runs one member in this process: its sockets, threads, files and clock."""
