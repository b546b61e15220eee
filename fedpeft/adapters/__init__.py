"""Adapter methods behind one contract, initializers, PEFT import and export."""
