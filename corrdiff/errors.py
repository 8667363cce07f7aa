"""The two kinds of failure a person is told about in one sentence."""


class UsageError(ValueError):
    """Something the caller gave is wrong: a file, an option, a codec. The command line exits with 2."""


class JobError(RuntimeError):
    """A job that was asked for correctly has failed. The command line exits with 1."""
