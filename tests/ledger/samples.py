"""Rows and a cheap event."""

from fedpeft.dp.events import DpSgdEvent

DELTA = 1e-5
DIGEST = "5e" * 32
EVENT = DpSgdEvent(noise_multiplier=4.0, sampling_prob=0.01, num_steps=5)


def rows(first: int, last: int) -> list[dict[str, object]]:
    """Rows number `first` to `last`, without the last."""
    return [{"text": f"message {i}", "label": i % 3} for i in range(first, last)]
