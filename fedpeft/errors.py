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
    │   ├── ProtocolError     a message of the other side is not what was agreed
    │   └── PrivacyError      a guarantee that cannot be given
    │       └── BudgetError   a privacy budget that would be exceeded
    ├── TransportError        the other side cannot be reached          exit code 1
    └── VerificationError     a finished result failed its own check    exit code 3

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


class ProtocolError(InputError):
    """A message of the other side is not what was agreed."""


class PrivacyError(InputError):
    """A privacy guarantee cannot be given for what was asked."""


class BudgetError(PrivacyError):
    """The next privacy event would exceed the budget."""


class TransportError(FedpeftError):
    """The other side cannot be reached, or does not answer as agreed."""


class VerificationError(FedpeftError):
    """A finished result failed its own check."""

    exit_code = 3
