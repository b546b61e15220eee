"""A base model that answers in a thread of its own, and versions that come and go meanwhile."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeAlias

from torch import Tensor

from fedpeft.errors import UnavailableError, VerificationError
from fedpeft.registry.fingerprint import Fingerprint, fingerprint
from fedpeft.serving.adapter_files import AdapterFiles
from fedpeft.serving.catalogue import Catalogue, Version
from fedpeft.serving.classification import Classifier
from fedpeft.serving.generation import Generator
from fedpeft.serving.model_thread import ModelThread
from fedpeft.serving.served_model import ServedModel

_LogitsOf: TypeAlias = Callable[[list[list[int]]], Sequence[Tensor]]


class Served:
    """What answers. Use it in a `with` block, which starts and stops its thread.

    Attributes:
        model: The base model; its thread alone uses it.
        catalogue: Which version answers under which name.
        generator: Of a causal language model.
        classifier: Of a classifier.
    """

    def __init__(self, model: ServedModel, *, max_rows: int = 32, max_waiting: int = 1024) -> None:
        """Takes a base model.

        Args:
            model: From this moment on its thread is the one here.
            max_rows: Rows of a batch.
            max_waiting: Requests that may wait; more are refused.
        """
        self.model = model
        self.generator: Generator | None = None
        self.classifier: Classifier | None = None
        answering: Generator | Classifier
        if model.task == "causal-lm":
            answering = self.generator = Generator(
                model, max_rows=max_rows, max_waiting=max_waiting
            )
        else:
            answering = self.classifier = Classifier(
                model, max_rows=max_rows, max_waiting=max_waiting
            )
        self.answering = answering
        self.thread = ModelThread(answering)
        self.catalogue = Catalogue(self._unload)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.thread.stop()

    def swap(self, name: str, files: AdapterFiles) -> Fingerprint:
        """Makes a version answer under a name, while requests are answered.

        The version is loaded beside the one that answers, and what it says is compared with what
        its files say before any request gets it. Then the name moves, between two steps; requests
        that began with the other version end with it. Last, what requests get under the name is
        compared again.

        Returns:
            The fingerprint of what requests get.

        Raises:
            AdapterError: If it does not fit the base model, or says nothing finite; the version
                before goes on.
            VerificationError: If what it says is not what its files say. Before the name moved the
                version before goes on; after it requests are refused: nothing is known of what
                they would get.
        """
        version = Version.of(files)
        state = self.catalogue.state(name)
        same = state.version is not None and state.version.digest == version.digest
        before = None if same else state.fingerprint
        with self.catalogue.staging(version):
            self.thread.call(lambda: self.model.bank.add(files)).result()
            expected = self.thread.call(lambda: fingerprint_of_files(self.model, files)).result()
            loaded = self.thread.call(lambda: self._by_bank(version.digest)).result()
            _compare(version, loaded, expected, before)
            self.catalogue.point(name, version)
        found = self.fingerprint(name)
        try:
            _compare(version, found, expected, before)
        except VerificationError as error:
            self.catalogue.close(name, str(error))
            raise
        self.catalogue.confirm(name, found)
        return found

    def fingerprint(self, name: str) -> Fingerprint:
        """Returns the fingerprint of what a request gets that asks for this model.

        Raises:
            RemoteError: If nothing answers under the name.
            AdapterError: If the outputs are not finite.
        """
        with self.catalogue.answering(name) as version:
            if version is None:
                raise VerificationError(f"requests for {name} wait for a version to be loaded")
            digest = version.digest
            return self.thread.call(lambda: self._by_bank(digest)).result()

    def _by_bank(self, digest: str) -> Fingerprint:
        def logits_of(rows: list[list[int]]) -> Sequence[Tensor]:
            with self.model.bank.rows([digest] * len(rows)):
                return self.model.logits(rows)

        return _fingerprint(self.model, logits_of)

    def _unload(self, digest: str) -> None:
        def unload() -> None:
            if not self.catalogue.has(digest):  # it may have come back meanwhile
                self.model.bank.remove(digest)

        with suppress(UnavailableError):  # all of it goes with this process
            self.thread.call(unload)


def fingerprint_of_files(model: ServedModel, files: AdapterFiles) -> Fingerprint:
    """Returns what an adapter says as its files have it, past all that is kept of adapters.

    Raises:
        AdapterError: If it does not fit the base model, or says nothing finite.
    """

    def logits_of(rows: list[list[int]]) -> Sequence[Tensor]:
        with model.bank.alone(files):
            return model.logits(rows)

    return _fingerprint(model, logits_of)


def _fingerprint(model: ServedModel, logits_of: _LogitsOf) -> Fingerprint:
    return fingerprint(logits_of, model.tokenizer, causal=model.task == "causal-lm")


def _compare(
    version: Version, found: Fingerprint, expected: Fingerprint, before: Fingerprint | None
) -> None:
    """Two versions may differ by less than the tolerance: then the nearer one is the one it is.

    What is expected comes through the same products as what is found, bit for bit, so that rounding
    does not make the version before the nearer one.
    """
    apart = found.distance(expected)
    if before is not None and found.agrees_with(before) and found.distance(before) < apart:
        raise VerificationError(
            f"the swap to version {version.digest[:12]} did nothing: what answers is the version "
            f"before (outputs {apart:.2g} nats from those that its files give, "
            f"{found.distance(before):.2g} from those before)"
        )
    if not found.agrees_with(expected):
        raise VerificationError(
            f"version {version.digest[:12]} does not say what its files say: outputs differ by "
            f"{apart:.2g} nats"
        )
