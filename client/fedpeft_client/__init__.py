"""The data owner's process: what composes the library into a client."""
