"""The messages of both planes: control messages, and the headers of frames."""
