import inspect
import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from fedpeft.cli.progress import SilentProgress, SimulationProgress, summary
from tests.report.factory import make_report

CALLBACKS = {
    "run_started": [
        "num_rounds",
        "first_round",
        "clients",
        "metric_name",
        "private",
        "target_epsilon",
    ],
    "round_started": ["round", "cohort"],
    "client_started": ["round", "client_id", "num_steps"],
    "step_finished": ["client_id", "step"],
    "client_finished": ["round", "client_id", "epsilon"],
    "evaluation_started": ["num_examples"],
    "evaluation_advanced": ["num_examples"],
    "round_finished": ["round", "metrics", "max_epsilon"],
    "note": ["message"],
}


def _clock() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 0.25


def _console(*, terminal: bool = False, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, color_system="truecolor"
    )


def _drive(
    progress: SilentProgress, *, private: bool = True, first_round: int = 1, clients: int = 2
) -> None:
    ids = ["north", "[red]south\x1b[31m", *(f"c{i}" for i in range(2, clients))][:clients]
    target = 6.0 if private else None
    with progress:
        progress.run_started(
            num_rounds=3,
            first_round=first_round,
            clients=ids,
            metric_name="accuracy",
            private=private,
            target_epsilon=target,
        )
        progress.evaluation_started(num_examples=50)
        progress.evaluation_advanced(num_examples=50)
        for number in range(first_round, 4):
            progress.round_started(round=number, cohort=ids)
            for client in ids:
                progress.client_started(round=number, client_id=client, num_steps=2)
                for step in range(2):
                    progress.step_finished(client_id=client, step=step)
                epsilon = 1.1 * number if private else None
                progress.client_finished(round=number, client_id=client, epsilon=epsilon)
            progress.evaluation_started(num_examples=50)
            progress.evaluation_advanced(num_examples=30)
            progress.evaluation_advanced(num_examples=30)
            progress.round_finished(
                round=number,
                metrics={"accuracy": 0.5 + number / 10} if number != 2 else None,
                max_epsilon=1.1 * number + 0.001 if private else None,
            )
        progress.note("wrote [bold]x[/bold]\x1b[0m")


def _output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("kind", [SilentProgress, SimulationProgress])
def test_callbacks_have_their_names(kind: type[SilentProgress]) -> None:
    for name, expected in CALLBACKS.items():
        parameters = list(inspect.signature(getattr(kind, name)).parameters)
        assert parameters == ["self", *expected]


def test_one_plain_line_a_round() -> None:
    console, clock = _console(), _clock()
    _drive(SimulationProgress(console, clock=lambda: next(clock)))
    lines = _output(console).splitlines()
    assert lines == [
        "3 rounds, 2 clients  budget ε = 6.00 for each client",
        "round 1/3  accuracy 60.0 %  ε ≤ 1.11 / 6.00  0.2 s",
        "round 2/3  ε ≤ 2.21 / 6.00  0.2 s",
        "round 3/3  accuracy 80.0 %  ε ≤ 3.31 / 6.00  0.2 s",
        "note: wrote [bold]x[/bold]\\x1b[0m",
    ]


def test_no_control_codes_even_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(file=io.StringIO(), width=30)
    _drive(SimulationProgress(console), private=False)
    assert "\x1b" not in _output(console)
    assert len(_output(console).splitlines()) == 5
    assert _output(console).count("NO PRIVACY") == 4


def test_ascii_console() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=100)
    _drive(SimulationProgress(console))
    console.print(summary(make_report(num_rounds=1), ascii_only=console.options.ascii_only))
    console.file.flush()
    assert b"epsilon <= 1.11 / 6.00" in raw.getvalue()
    assert b"at delta = 1e-5" in raw.getvalue()


@pytest.mark.parametrize("private", [True, False])
def test_live_display(private: bool) -> None:
    console = _console(terminal=True)
    _drive(SimulationProgress(console, live=True), private=private)
    shown = _output(console)
    assert "Round 3/3" in shown
    assert "accuracy 80.0 % (round 3)" in shown
    assert ("ε ≤ 3.31 / 6.00" in shown) == private
    assert ("\x1b[1;31mNO PRIVACY" in shown) != private
    assert "\x1b[31m" not in shown.replace("\x1b[1;31m", "")
    assert shown.rstrip().endswith("\x1b[?25h")


def test_live_rows() -> None:
    console = _console(terminal=True)
    now = 0.0
    progress = SimulationProgress(console, live=True, clock=lambda: now)
    with progress:
        progress.run_started(
            num_rounds=4,
            first_round=3,
            clients=["a", "b"],
            metric_name="accuracy",
            private=True,
            target_epsilon=8.0,
        )
        progress.round_started(3, ["a", "b"])
        progress.client_started(3, "a", 10)
        now = 10.0
        for step in range(5):
            progress.step_finished("a", step)
        console.file = io.StringIO()
        assert progress._display is not None
        progress._display.live.refresh()
        shown = _output(console)
    # A quarter of a round took 10 s, and one and three quarters are left.
    assert "Round 3/4" in shown
    assert "10 s, 1 min 10 s left" in shown
    assert "a (1 of 2)" in shown
    assert "5/10 steps" in shown


def test_terminal_is_restored_after_an_error() -> None:
    console = _console(terminal=True)

    def fail() -> None:
        with SimulationProgress(console, live=True) as progress:
            progress.round_started(1, ["a"])
            progress.client_started(1, "a", 0)
            progress.step_finished("a", 1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert _output(console).rstrip().endswith("\x1b[?25h")


def test_resumed_run() -> None:
    console = _console()
    _drive(SimulationProgress(console), first_round=3)
    assert _output(console).startswith("3 rounds, from round 3, 2 clients")


def test_silent(capfd: pytest.CaptureFixture[str]) -> None:
    _drive(SilentProgress())
    assert capfd.readouterr() == ("", "")


def test_default_console_is_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    _drive(SimulationProgress())
    out, err = capfd.readouterr()
    assert out == ""
    assert "round 3/3" in err


def test_summary() -> None:
    console = _console(width=120)
    console.print(summary(make_report(notes=["[red]note\x1b"])))
    shown = _output(console)
    assert "6.00 / 6.00 at δ = 1\N{MULTIPLICATION SIGN}10⁻⁵" in shown
    assert "64.9 %, from 25.0 %, majority class 31.0 %" in shown
    assert "[red]note\\x1b" in shown
    assert "NO PRIVACY" not in shown


def test_summary_without_privacy() -> None:
    console = _console(terminal=True, width=120)
    console.print(summary(make_report(private=False)))
    assert "\x1b[1;31mNO PRIVACY" in _output(console)
    assert "largest ε" not in _output(console)
