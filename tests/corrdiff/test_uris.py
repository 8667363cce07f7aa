"""A name is nothing but a name, and what lets somebody in is neither taken nor kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrdiff.errors import UsageError
from corrdiff.uris import has_secret, open_fs, redacted, scheme

NAMES = st.text(st.sampled_from("a:/?*[]{}#%@~ ö=&.-\\"), min_size=1, max_size=12).filter(
    lambda name: not {"", ".", ".."} & {*name.split("/")} and "?versionId=" not in name
)


@given(name=NAMES)
def test_a_name_on_a_disk_is_nothing_but_a_name(name: str) -> None:
    fs, path = open_fs(f"/base/{name}")
    assert fs.protocol == ("file", "local")
    assert path == f"/base/{name}"


@given(name=NAMES)
def test_a_key_in_a_bucket_is_nothing_but_a_key(name: str) -> None:
    fs, path = open_fs(f"s3://bucket/{name}")
    assert "s3" in fs.protocol
    assert fs.split_path(path) == ("bucket", name, None)


@given(name=NAMES)
def test_files_of_odd_names_are_read_as_they_were_written(name: str) -> None:
    fs, path = open_fs(f"memory://odd-names/{name}")
    fs.pipe_file(path, name.encode())
    assert open_fs(f"memory://odd-names/{name}")[0].cat_file(path) == name.encode()


def test_what_a_driver_would_take_for_another_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="versionId"):
        open_fs("s3://bucket/a.png?versionId=b.png")


@pytest.mark.parametrize("uri", ["nosuch://x/y", "simplecache://x"])
def test_a_scheme_that_is_not_known_is_one_sentence(uri: str) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        open_fs(uri)


def test_a_chain_of_file_systems_is_a_path_of_this_machine(tmp_path: Path) -> None:
    assert scheme("simplecache::s3://bucket/a") is None
    (tmp_path / "a.png::b.png").write_bytes(b"its own")
    (tmp_path / "a.png").write_bytes(b"another")
    fs, path = open_fs(str(tmp_path / "a.png::b.png"))
    assert fs.cat_file(path) == b"its own"


SECRETS = [
    "https://TOKENplanted@host/a", "https://me:planted@host/a", "s3://key:planted/x@bucket/a", "ftp://:planted@host",
    "postgresql://me:pl@planted@host/db", "https://host/a?X-Amz-Signature=planted&X-Amz-Date=1", "https://h/a?sig=planted",
    "https://h/a?b=1&access_token=planted", "https://h/a?api-key=planted", "gs://b/x?x-goog-signature=planted#f",
    "https://h/a?AWSAccessKeyId=planted&b", "HTTPS://planted@host/",
]  # fmt: skip


@pytest.mark.parametrize("uri", SECRETS)
def test_what_lets_somebody_in_is_seen_and_hidden(uri: str) -> None:
    assert has_secret(uri)
    assert "planted" not in redacted(uri)
    assert "planted" not in redacted(f"reading {uri} failed: {uri}")
    assert redacted(redacted(uri)) == redacted(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@2x:b.png", "sftp://me@host:22/a", "gs://b/x@y", "abfs://container@account.dfs.core.windows.net/a",
        "http://host:8080/img@2x.png", "https://h/a?design=1&page=2", "/home/me:x@y/a://b", "s3://b/monkey=1?x=key",
        "https://h/signature/a.png",
    ],
)  # fmt: skip
def test_what_lets_nobody_in_is_left_as_it_is(uri: str) -> None:
    assert not has_secret(uri)
