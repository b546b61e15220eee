"""Removal of data from an adapter: losses, starting points, methods and their verification."""
