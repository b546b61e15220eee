"""Rounds, local training, aggregators, simulation."""
