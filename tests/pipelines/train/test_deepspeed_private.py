"""What this project takes of DeepSpeed's private parts, on a real engine of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.train import checkpoints
from pipelines.train.checkpoints import MOMENTS, Restored, TrainProgress
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import deepspeed_config
from pipelines.train.epoch_order import Cursor

CONFIG = TrainConfig(shards="s", batch=4, lr=0.01)


pytestmark = pytest.mark.usefixtures("process_group")


def engine_of(module: nn.Module, stage: int) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=list(module.parameters()), config=deepspeed_config(CONFIG, 1, stage)
    )
    return engine


def step(engine: Any, seed: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    engine.backward(engine(x).square().mean())
    engine.step()


def module_with(weights: dict[str, Tensor] | None = None) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    if weights is not None:
        module.load_state_dict(weights)
    return module


def states_of(engine: Any) -> dict[str, dict[str, Tensor]]:
    """Weight and moments of each parameter, as a checkpoint has them."""
    return {
        name: {kind: tensor.detach().clone() for kind, tensor in state.items()}
        for name, state in checkpoints._full_states(engine)
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_moments_put_into_a_fresh_engine_are_those_of_the_old_one_and_so_is_its_next_step(stage: int) -> None:
    old = engine_of(module_with(), stage)
    for seed in range(3):
        step(old, seed)
    states = states_of(old)
    assert all(state[kind].abs().max() > 0 for state in states.values() for kind in MOMENTS)
    kept = {kind: {name: state[kind] for name, state in states.items()} for kind in ("weight", *MOMENTS)}
    fresh = engine_of(module_with(kept["weight"]), stage)
    checkpoints.restore_moments(fresh, Restored(TrainProgress(12, 3, Cursor(0, 3)), kept))
    assert_equal(states_of(fresh), states)
    step(old, 3)
    step(fresh, 3)
    assert_equal(states_of(fresh), states_of(old))


def assert_equal(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        for kind, tensor in state.items():
            torch.testing.assert_close(found[name][kind], tensor, rtol=0, atol=0, msg=f"{kind}/{name}")


def test_no_all_reduce_of_deepspeeds_own_is_compiled() -> None:
    from deepspeed.comm import comm

    engine_of(module_with(), 1)
    assert comm.cdb.is_initialized()
    assert comm.cdb.shm_comm_op is None
