"""Whether this machine can take part in a federation, before it does: one check a file."""
