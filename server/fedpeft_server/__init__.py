"""The coordinator's process: what composes the library into a server."""
