# SPDX-License-Identifier: Apache-2.0
"""All errors of perfguest. Each says what is wrong and what to do next; ``cli.main`` catches them once and turns them into an exit code."""

from __future__ import annotations


class PerfguestError(Exception):
    """Base of all. ``exit_code`` is what the command ends with.

    The message is one sentence on what is wrong; ``hint``, if given, says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(PerfguestError):
    """Options that do not fit together or values out of range."""

    exit_code = 2


class EnvironmentProblem(PerfguestError):
    """This machine lacks something: root, perf, headers, KVM, debugfs."""

    exit_code = 3


class ModuleProblem(PerfguestError):
    """The kernel module cannot be built or loaded."""

    exit_code = 4


class CaptureError(PerfguestError):
    """Recording began and could not be brought to its end."""

    exit_code = 5


class FormatError(PerfguestError):
    """A file is not what it should be. The message holds its path and, where it makes sense, the offset."""

    exit_code = 6


class LabError(PerfguestError):
    """The lab's host or guest did not come up, or was lost."""

    exit_code = 7
