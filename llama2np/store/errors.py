"""The error of a download."""


class PullError(ValueError):
    """A failed download: one line with what was expected, what was found, and what to do."""
