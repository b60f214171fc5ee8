"""Every exception the product raises on purpose, each with what to do about it.

A `UserError` is the caller's to mend (exit code 2), a `DriftError` and a `GateError` for a person
to look at (exit codes 3 and 4); every other failure is ours or the machine's (exit code 1).
"""

_CAUSES = 20  # of an error that are looked at: one may be its own


class LlambertError(Exception):
    """Base of the product's errors: one sentence that names the value, one that mends it."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message

    def __reduce__(self):  # keeps `remedy` when Ray sends the error between processes
        return type(self), (self.message, self.remedy)


class UserError(LlambertError, ValueError):
    """The configuration, the command or the data named by it is wrong."""

    exit_code = 2


class NoFilesError(UserError):
    """There is nothing at a path: a wrong one, or a folder that has been emptied."""


class StageError(LlambertError):
    """A stage could not finish although its input was acceptable."""


class CountError(StageError):
    """Records in and records out of a stage do not add up: something was lost or doubled."""


class DriftError(LlambertError):
    """A night was labelled and looks wrong, so that it is not published."""

    exit_code = 3


class GateError(LlambertError):
    """A figure of the run is past the bound that the run file sets it."""

    exit_code = 4


def ours(error: BaseException | None) -> LlambertError | None:
    """The product's own error where one lies among the causes of `error`, which Ray may wrap."""
    for _ in range(_CAUSES):
        raised = getattr(error, "cause", None) or error  # Ray keeps a worker's exception in `cause`
        if isinstance(raised, LlambertError):
            return raised
        error = getattr(raised, "__cause__", None)
    return None
