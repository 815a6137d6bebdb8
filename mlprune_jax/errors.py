"""The library's one error family; each class carries the exit code of the command line."""


class MLPruneError(Exception):
    """A failure the user can act on: what is wrong and where, then what to do about it.

    Args:
        message: what is wrong and where; holds the value received.
        hint: what to do about it, one sentence, shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(MLPruneError):
    """A setting, option or argument is wrong (exit code 2)."""

    exit_code = 2


class DataError(MLPruneError):
    """Data is missing or damaged (exit code 3)."""

    exit_code = 3


class ModelError(MLPruneError):
    """A model is missing, damaged or of another architecture (exit code 3)."""

    exit_code = 3


class IntegrityError(MLPruneError):
    """A stored artifact is not what was written (exit code 4)."""

    exit_code = 4


class NumericalError(MLPruneError):
    """Training left the finite numbers (exit code 5)."""

    exit_code = 5


class Preempted(MLPruneError):
    """The run was asked to stop, saved its state and can be resumed (exit code 75)."""

    exit_code = 75
