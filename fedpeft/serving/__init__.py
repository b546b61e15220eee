"""Answers over HTTP from many adapters on one base model, which are swapped while it answers."""
