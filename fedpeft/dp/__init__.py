"""Differential privacy: one noun a file; `mechanism` alone composes them."""
