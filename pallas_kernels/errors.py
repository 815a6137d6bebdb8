"""The one error family of this package."""


class KernelError(ValueError):
    """A matrix, an operand or an implementation that cannot be used; the message says which, where and why."""
