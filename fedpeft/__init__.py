"""Federated, differentially private fine-tuning of language-model adapters."""

__version__ = "0.1.0"
