"""The round engine of one member: plan, gather, send, receive, merge, scatter."""
