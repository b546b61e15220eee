import pytest

from fedpeft.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.00"),
        (1e-9, "0.01"),
        (1.1, "1.10"),
        (3.42, "3.42"),
        (3.42 + 1e-12, "3.43"),
        (5.991, "6.00"),
        (float("inf"), "∞"),
        (float("nan"), "∞"),
    ],
)
def test_epsilon_never_shows_less_than_was_spent(value: float, shown: str) -> None:
    assert text.epsilon(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(6, "6.00"), (0.125, "0.125"), (8.25, "8.25")])
def test_budget(value: float, shown: str) -> None:
    assert text.budget(value) == shown


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (147_456, "147 kB"), (1_234_567, "1.2 MB")],
)
def test_size(num_bytes: int, shown: str) -> None:
    assert text.size(num_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.97, "10 s"), (59.9, "60 s"), (133.4, "2 min 13 s"), (11100, "3 h 05 min")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_delta() -> None:
    assert text.delta(1e-5) == "1\N{MULTIPLICATION SIGN}10⁻⁵"
    assert text.delta(2.5e-12) == "2.5\N{MULTIPLICATION SIGN}10⁻¹²"


def test_printable_escapes_what_could_steer() -> None:
    assert text.printable("a\x1b[2J\n\u202eb") == "a\\x1b[2J\\n\\u202eb"
    assert text.printable("京都 <b>") == "京都 <b>"
    assert text.printable("x" * 99, 10) == "xxxxx…xxxx"


def test_numbers_line_up() -> None:
    assert [text.metric("loss", v) for v in (1.28, 0.567, 12345.6)] == ["1.280", "0.5670", "12,346"]
    assert text.metric("token_accuracy", 0.8137) == "81.4 %"
    assert text.number(float("nan")) == "not finite"
