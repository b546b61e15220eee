"""Calls that begin together."""

import threading
from collections.abc import Callable


def at_once(*calls: Callable[[], object]) -> list[BaseException | None]:
    """Begins all calls together; what each raised."""
    barrier, raised = threading.Barrier(len(calls)), [None] * len(calls)  # type: ignore[var-annotated]

    def run(number: int, call: Callable[[], object]) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:
            raised[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised
