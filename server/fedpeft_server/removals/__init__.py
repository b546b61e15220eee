"""Removal requests at the coordinator: what a request will do, and what is told of it."""
