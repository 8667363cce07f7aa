"""Hosts with addresses of their own, of which one is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import hosts
from tests.support.hosts import NoNamespacesError


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_two_hosts_survives_a_pulled_cable(tmp_path: Path) -> None:
    try:
        said = hosts.run(tmp_path)
    except NoNamespacesError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    hosts.check(said)
