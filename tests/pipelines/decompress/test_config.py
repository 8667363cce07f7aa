from __future__ import annotations

from typing import Any

import pytest

from corrdiff.errors import UsageError
from pipelines.decompress.config import DecompressConfig
from pipelines.options import identity


def test_pictures_are_saved_without_loss_one_file_each_unless_told() -> None:
    config = DecompressConfig()
    assert (config.format, config.shards, config.decoding) == ("png", False, "corrected")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1, not 0"),
        ({"max_pixels": 0}, "--max-pixels must be at least 1, not 0"),
    ],
)
def test_what_a_dataset_cannot_be_decompressed_with_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DecompressConfig(**options)


@pytest.mark.parametrize("change", [{"workers": 3}, {"device": "cpu"}, {"max_pixels": 10}])
def test_what_changes_no_picture_may_change_when_a_decompression_goes_on(change: dict[str, Any]) -> None:
    assert identity(DecompressConfig(**change)) == identity(DecompressConfig())


@pytest.mark.parametrize(
    "change", [{"format": "webp"}, {"shards": True}, {"decoding": "privileged"}, {"precision": "fp32"}]
)
def test_what_changes_pictures_makes_another_decompression(change: dict[str, Any]) -> None:
    assert identity(DecompressConfig(**change)) != identity(DecompressConfig())
