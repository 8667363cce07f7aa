"""A rank of a training that reads a compressed dataset: python -m tests.support.read_as_rank ARGUMENTS (as JSON).

It writes down, after each picture and in one go, the keys that it has had and the states of its loader's workers. So
whenever it is killed, what is written down is whole.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch.distributed as dist
from torchdata.stateful_dataloader import StatefulDataLoader

from pipelines import CompressedPictures


def states_of(loader: StatefulDataLoader[Any]) -> list[dict[str, Any]]:
    """The dataset's state in each worker of a loader."""
    state = loader.state_dict()
    if "_snapshot" not in state:
        return [state["dataset_state"]]
    return [worker["dataset_state"] for worker in state["_snapshot"]["_worker_snapshots"].values()]


def main(
    dataset: str, codec: str, seed: int, epoch: int, state: dict[str, Any] | None, workers: int, rank: int, ranks: int,
    rendezvous: str, out: str,
) -> None:  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    pictures = CompressedPictures(dataset, codec, seed=seed, crop=16)
    if state is not None:
        pictures.load_state_dict(state)
    pictures.set_epoch(epoch)
    loader = StatefulDataLoader(pictures, batch_size=None, num_workers=workers)
    keys: list[str] = []

    def write() -> None:
        with open(f"{out}.tmp", "w") as file:
            json.dump({"keys": keys, "states": states_of(loader)}, file)
        os.replace(f"{out}.tmp", out)

    write()
    for key, _ in loader:
        keys.append(key)
        write()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
