"""The verification gate: what a successor must show before it is published."""
