"""What trainings without Ray have in common: a process group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from pipelines.train import deepspeed_private


@pytest.fixture(scope="package")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, as a training worker without a GPU has it.

    One for all tests here: DeepSpeed holds on to the first that it sees.
    """
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        deepspeed_private.use_plain_gloo()
        yield
        dist.destroy_process_group()
