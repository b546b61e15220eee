"""Generated from protos/fedpeft/wire/v1 by `make protos`."""
