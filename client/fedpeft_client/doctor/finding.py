"""What a check found, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """How good what was found is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check says.

    Attributes:
        grade: How good it is; with `fail` the machine cannot take part.
        found: What was found.
        remedy: What to do about it; empty where there is nothing to do.
    """

    grade: Grade
    found: str
    remedy: str = ""

    @classmethod
    def ok(cls, found: str) -> "Finding":
        """Nothing is to be done."""
        return cls(grade=Grade.OK, found=found)

    @classmethod
    def warn(cls, found: str, remedy: str) -> "Finding":
        """It works, and somebody should know."""
        return cls(grade=Grade.WARN, found=found, remedy=remedy)

    @classmethod
    def fail(cls, found: str, remedy: str) -> "Finding":
        """It does not work."""
        return cls(grade=Grade.FAIL, found=found, remedy=remedy)

    @classmethod
    def skipped(cls, why: str) -> "Finding":
        """It was not looked at."""
        return cls(grade=Grade.SKIPPED, found=why)
