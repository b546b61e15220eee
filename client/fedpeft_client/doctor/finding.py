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
    """One line of a report.

    Attributes:
        check: What was looked at.
        grade: How good it is; with `fail` the machine cannot take part.
        found: What was found.
        remedy: What to do about it; empty where there is nothing to do.
    """

    check: str
    grade: Grade
    found: str
    remedy: str = ""

    @classmethod
    def ok(cls, check: str, found: str) -> "Finding":
        """Nothing is to be done."""
        return cls(check=check, grade=Grade.OK, found=found)

    @classmethod
    def warn(cls, check: str, found: str, remedy: str) -> "Finding":
        """It works, and somebody should know."""
        return cls(check=check, grade=Grade.WARN, found=found, remedy=remedy)

    @classmethod
    def fail(cls, check: str, found: str, remedy: str) -> "Finding":
        """It does not work."""
        return cls(check=check, grade=Grade.FAIL, found=found, remedy=remedy)

    @classmethod
    def skipped(cls, check: str, why: str) -> "Finding":
        """It was not looked at."""
        return cls(check=check, grade=Grade.SKIPPED, found=why)
