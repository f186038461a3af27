"""What the ZeroMQ sockets of both planes share: CURVE keys, who may connect, heartbeats."""
