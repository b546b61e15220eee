"""Base models, tasks, data sources and partitioners."""
