"""Trying again what failed for a reason that may pass: storage that is slow, busy or away for a while."""

from __future__ import annotations

import errno
import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from corrdiff.errors import JobError, UsageError

T = TypeVar("T")

ATTEMPTS = 5
PATIENT_ATTEMPTS = 30
"""For what a long job reads and writes: with pauses of at most `LONGEST_DELAY_S` it waits some four minutes."""

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 15.0

_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)
_READ_ONLY = errno.EROFS
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ASK_AGAIN = (408, 425, 429)
"""Of the answers that refuse, those that mean: not now."""
_DRIVERS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "urllib3")
"""Packages whose errors about the network are not `OSError`s."""
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoAuthTokenError")
"""Their errors that no second attempt helps."""


class NoCredentialsError(UsageError):
    """Nobody has said who asks: that is no single file's fault."""


def with_retries(what: str, action: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Run an idempotent action, again with growing pauses where it failed for a reason that may pass.

    Says once on stderr that it goes on trying where that takes long. Raises `JobError` when the last attempt failed
    too. A missing object (`FileNotFoundError`), a refused permission (`UsageError`), a full disk and what the action
    itself calls a `JobError` are final at once.
    """
    delay_s = FIRST_DELAY_S
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except (*_FINAL, JobError, UsageError):
            raise
        except PermissionError as error:
            raise UsageError(f"{what} is not permitted ({error}); check the path and the credentials") from error
        except Exception as error:
            if isinstance(error, OSError) and str(error).startswith("Forbidden: "):  # gcsfs says it in words alone
                reason = str(error).splitlines()[-1]
                raise UsageError(f"{what} is not permitted ({reason}); check the path and the credentials") from None
            if type(error).__name__ in _CREDENTIALS:
                raise NoCredentialsError(f"{what} is not possible: {error}") from None
            if type(error).__name__ == "ParamValidationError":  # a mistake of ours
                raise
            if getattr(error, "errno", None) in _NO_NAME:
                raise
            if getattr(error, "errno", None) == _READ_ONLY:
                raise UsageError(f"{what} is not possible: the disk is read-only") from None
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _DRIVERS:
                raise
            if attempt == attempts or getattr(error, "errno", None) in _FULL or _is_answer(error):
                times = "" if attempt == 1 else f" {attempt} times, last"
                raise JobError(f"{what} failed{times} with: {error}") from error
            if attempt == ATTEMPTS:
                print(f"{what} fails ({error}); trying again for some minutes", file=sys.stderr)
        time.sleep(delay_s * random.uniform(0.5, 1.0))  # many workers must not come back at the same moment
        delay_s = min(2 * delay_s, LONGEST_DELAY_S)
    raise AssertionError


def _is_answer(error: Exception) -> bool:
    """Whether a server of the web has answered that it will not, as 403 and 410 do: no second attempt helps."""
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _ASK_AGAIN
