"""Benchmarks: interleaved arms in one process, ratios with intervals, checked while measured."""
