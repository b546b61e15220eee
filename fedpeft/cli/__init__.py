"""The `fedpeft` command."""
