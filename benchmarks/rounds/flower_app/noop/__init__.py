"""A Flower app whose clients train nothing."""
