"""The error that a user can do something about."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Bad input, in one sentence that says what is wrong and what to do; the command line prints it without a trace."""
