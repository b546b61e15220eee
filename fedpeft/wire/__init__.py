"""What machines say to each other: generated messages, and their one translation."""
