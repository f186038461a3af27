"""The oracle: a whole population in one process, without sockets."""
