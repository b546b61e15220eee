"""What a run tells those who watch it."""

from collections.abc import Mapping, Sequence


class Observer:
    """What watches a run; this one does nothing with what it is told."""

    def run_started(
        self,
        *,
        num_rounds: int,
        first_round: int,
        clients: Sequence[str],
        metric_name: str,
        private: bool,
        target_epsilon: float | None,
    ) -> None:
        """The first round is about to begin, or `first_round`, where the run goes on."""

    def round_started(self, round: int, cohort: Sequence[str]) -> None:  # noqa: A002
        """A round begins."""

    def client_started(self, round: int, client_id: str, num_steps: int) -> None:  # noqa: A002
        """A client begins its local steps; or several at once, which one label then names."""

    def step_finished(self, client_id: str, step: int) -> None:
        """A local step is done; steps are counted, `step` itself need not be read."""

    def client_finished(self, round: int, client_id: str, epsilon: float | None) -> None:  # noqa: A002
        """A client's update is durable."""

    def evaluation_started(self, num_examples: int) -> None:
        """The held-out set is about to be scored."""

    def evaluation_advanced(self, num_examples: int) -> None:
        """That many more rows are scored."""

    def round_finished(
        self,
        round: int,  # noqa: A002
        metrics: Mapping[str, float] | None,
        max_epsilon: float | None,
    ) -> None:
        """A round is durable."""

    def note(self, message: str) -> None:
        """Something that a reader of the report should know."""
