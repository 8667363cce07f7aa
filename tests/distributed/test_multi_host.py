"""Hosts with addresses of their own, of which one is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import hosts as multi_host
from tests.support.hosts import NoNamespacesError


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_two_hosts_survives_a_pulled_cable(tmp_path: Path) -> None:
    try:
        said = multi_host.run(tmp_path)
    except NoNamespacesError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    multi_host.check(said)
