"""What all stages of a compression are tested with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from corrdiff import perceptual


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    """LPIPS is left out, whatever this machine has; stages set torch's threads, which are restored."""
    monkeypatch.setattr(perceptual, "lpips_weights", lambda given=None: None)
