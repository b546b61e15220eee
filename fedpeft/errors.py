"""Every error that fedpeft raises on purpose, in one tree.

    FedpeftError
    ├── InputError            the user's input cannot be used           exit code 2
    │   ├── ConfigError       a configuration value or key
    │   ├── DataError         a data file, a column, a row, a partition
    │   ├── ModelError        a base model, a tokenizer, a module pattern
    │   ├── AdapterError      an adapter's tensors, shapes or files
    │   ├── IdentityError     a key, a certificate, a role or a request for one
    │   │   ├── EnrolmentError a key that the server does not know, or no longer
    │   │   └── ReplacedError a key that another process uses now
    │   ├── LedgerError       a budget ledger's file, database or entries
    │   ├── PolicyError       what a client's own policy does not allow
    │   ├── RowsRemovedError  an update with rows that are to be forgotten
    │   ├── ProtocolError     a message that another machine should not have sent
    │   └── PrivacyError      a guarantee that cannot be given
    │       └── BudgetError   a privacy budget that would be exceeded
    ├── VerificationError     a finished result failed its own check    exit code 3
    ├── RemoteError           a server refused, with a code             exit code 4
    ├── UnavailableError      a server or database cannot be reached    exit code 5
    │   └── TransportError    or does not answer as agreed
    ├── QuorumError           a round without the updates it needs      exit code 1
    ├── WorkerLostError       a process that worked for us ended        exit code 1
    └── DivergedError         training gave NaN or infinite values      exit code 1

A message says what was expected, what came, and what to do about it.
"""


class FedpeftError(Exception):
    """Base of all errors that fedpeft raises on purpose."""

    exit_code = 1


class InputError(FedpeftError):
    """The user's input cannot be used; nothing was changed."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key or value is wrong."""


class DataError(InputError):
    """A data file, column, row or partition is wrong."""


class ModelError(InputError):
    """A base model, tokenizer or module pattern is wrong."""


class AdapterError(InputError):
    """An adapter's tensors, shapes or files are wrong."""


class IdentityError(InputError):
    """A key, certificate, role or request for one cannot be used."""


class EnrolmentError(IdentityError):
    """The server does not know this key, or no longer: enrol, or ask its operator."""


class ReplacedError(IdentityError):
    """Another process connected with the same key and took this one's place."""


class LedgerError(InputError):
    """A budget ledger cannot be opened, read or written, or does not know what was named."""


class PolicyError(InputError):
    """A client's own policy does not allow what was asked of it."""


class RowsRemovedError(InputError):
    """An update was made of rows that are to be forgotten since; it is not sent."""


class ProtocolError(InputError):
    """A message from another machine is not one that the protocol allows."""


class PrivacyError(InputError):
    """A privacy guarantee cannot be given for what was asked."""


class BudgetError(PrivacyError):
    """The next privacy event would exceed the budget."""


class VerificationError(FedpeftError):
    """A finished result failed its own check."""

    exit_code = 3


class RemoteError(FedpeftError):
    """A server refused a call.

    Attributes:
        code: What `fedpeft.wire.catalogue` calls it.
    """

    exit_code = 4

    def __init__(self, code: str, message: str) -> None:
        """Takes the code, and the message that the server meant for the caller."""
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["RemoteError"], tuple[str, str]]:
        """Keeps both on the way between processes."""
        return type(self), (self.code, str(self))


class UnavailableError(FedpeftError):
    """A server or its database cannot be reached; nothing is known to have happened."""

    exit_code = 5


class TransportError(UnavailableError):
    """The other side cannot be reached, or does not answer as agreed."""


class WorkerLostError(FedpeftError):
    """A process that worked for this one ended before it answered."""


class QuorumError(FedpeftError):
    """A round did not get the updates that it needs; its run can be resumed in it."""


class DivergedError(FedpeftError):
    """Training ended in NaN or infinite values."""
