"""Everything of Ray's that is not public and that the commands for clusters use.

tests/distributed/test_cluster_private.py uses each on a real cluster: an upgrade of Ray has to pass it.
"""

from __future__ import annotations

from pathlib import Path


def spill_directory() -> Path:
    """Find where Ray puts what its memory has no room for, on the node of this process."""
    import ray

    node = ray._private.worker._global_node
    return Path(node._fallback_directory or node.get_session_dir_path())
