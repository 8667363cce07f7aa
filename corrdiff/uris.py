"""Places of files: a path of this machine, or SCHEME://REST of whatever fsspec knows. A name is nothing but a name."""

from __future__ import annotations

import re

import fsspec
from fsspec.implementations.local import LocalFileSystem

from corrdiff.errors import UsageError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_USER = re.compile(
    r"(?<=http://)[^/?#\s]*@|(?<=https://)[^/?#\s]*@|(?<=://)[^/\s@:]*:(?!\d+/)[^\s@]*@(?:[^/\s@]*@)*", re.IGNORECASE
)
"""What lets somebody in, before the host: of the web a name alone may be a token, elsewhere there is a password (a
bucket's may have slashes in it)."""
_SIGNED = re.compile(
    r"([?&;](?:[\w.-]*(?:signature|token|credential|secret|passw\w*|api[_-]?key)|[\w.-]*access[_-]?key\w*|sig|key|auth|pwd))"
    r"=[^&;#\s]*",
    re.IGNORECASE,
)
"""Parameters that let whoever reads them in: signed queries of S3, Azure and Google, keys of services."""
HIDDEN = "***"


def scheme(uri: str) -> str | None:
    """What stands before `://`; None of a path of this machine, whatever is in its name."""
    found = _SCHEME.match(uri)
    return found[0] if found else None


def open_fs(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it.

    fsspec's own way would read `::` in a name as a chain of file systems, and give other bytes than those of that name.

    Raises:
        UsageError: the scheme is unknown, or its driver is not installed.
        ValueError: the driver would take the name for another one.
    """
    kind = scheme(uri)
    if kind is None:
        return LocalFileSystem(use_listings_cache=False), str(LocalFileSystem._strip_protocol(f"file://{uri}"))
    try:
        driver = fsspec.get_filesystem_class(kind)
        fs = driver(**driver._get_kwargs_from_urls(uri), use_listings_cache=False)
        path = str(driver._strip_protocol(uri))
    except (ValueError, ImportError) as error:
        raise UsageError(f"cannot open {redacted(uri)}: {error}") from None
    if kind in ("s3", "s3a") and "?versionId=" in path:
        raise ValueError("its name has '?versionId=', which the S3 driver takes for a version of another object")
    return fs, path


def has_secret(uri: str) -> bool:
    """Whether a URI has a password, a token or a signature in it."""
    return redacted(uri) != uri


def redacted(uri: str) -> str:
    """A URI, or a sentence with URIs in it, without user, password, token and signature: fit for a log."""
    return _SIGNED.sub(rf"\1={HIDDEN}", _USER.sub("", uri)) if "://" in uri else uri
