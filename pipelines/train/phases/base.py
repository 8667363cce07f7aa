"""What a phase of training is, for the loop, the export and the command line; and what all phases have in common.

A new phase is a file beside this one, which says what it trains and by which loss, and a line in table.py. The name of
it stands in `PhaseName`, and what a person types in cli.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from corrdiff.codec_directory import read_config
from corrdiff.config import CodecConfig, preset
from corrdiff.errors import UsageError
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.model import CorrDiffModel
from corrdiff.perceptual import PerceptualLoss
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.schedule import Stretch

FirstCrops = Callable[[int], Tensor]
"""Gives that many training crops, x_BCHW in [-1, 1], the same ones on all workers: to start networks from."""


class Phase(Protocol):
    """One phase of training. It has no state: all that it gives is a function of a run's configuration."""

    name: PhaseName
    """The word for it on the command line, in a run's directory and in MLflow."""
    follows: PhaseName | None
    """The phase whose codec it goes on from, where it does not train all of a codec: what it does not train is that
    codec's, of which the run then keeps a copy. None where it can start from nothing."""
    terms: tuple[str, ...]
    """Names of the columns that its module gives; the first is the loss."""

    def module(
        self, config: TrainConfig, device: torch.device, perceptual: PerceptualLoss | None,
        first_crops: FirstCrops | None = None,
    ) -> nn.Module:  # fmt: skip
        """Build what DeepSpeed is to wrap: a `Sample`, the name of a stretch and the share of it that is done -> loss
        terms, [B, len(terms)].

        Its parameters that take a gradient are what is trained, averaged and kept in checkpoints, by their names in it.
        Each of them must have a gradient in every step, of exact zeros where it stands still: a ZeRO stage may take the
        gradient of the step before for one that is missing. Whatever else the loss needs must not be among them, as a
        frozen network on `device` is not.

        Its residual blocks are the trainer's to have computed again on the way back, where memory is short.

        `first_crops` is there where the weights are not replaced by a checkpoint's.

        Raises `UsageError` where the codec to start from is missing or damaged.
        """

    def group(self, parameter: str) -> str:
        """Name the group of a trained parameter: those of a group have one learning rate, and stand still together."""

    def stretches(self, config: TrainConfig) -> tuple[Stretch, ...]:
        """Give the parts of a run, the first one first; their shares make up 1, and may be 0."""

    def codec(self, config: TrainConfig, averaged: dict[str, Tensor]) -> tuple[CorrDiffModel, EntropyTables]:
        """Build the whole codec on the CPU, for validation and export.

        `averaged` has the averages of the trained weights by their names in `module`, on the CPU, for the codec to
        keep. What a codec has no use for, say a network that only the loss needs, is left out.
        """


WHOLE = "whole"
"""The name of a stretch that is all of a run, and of a group that is all that trains."""


def title(name: PhaseName) -> str:
    """The words for a phase in a sentence, say "phase 1"."""
    return f"phase {name.removeprefix('phase')}"


def codec_config(config: TrainConfig) -> CodecConfig:
    """The shape of a run's networks: that of the codec it starts from, else the preset's."""
    return read_config(config.init_from)[0] if config.init_from else preset(config.preset)


def start_codec(phase: Phase, config: TrainConfig) -> str:
    """The codec that a phase goes on from. Raises `UsageError` where none is given."""
    if config.init_from is None:
        before = f" of a finished {title(phase.follows)}" if phase.follows else ""
        raise UsageError(f"{title(phase.name)} needs the codec{before}: give --init-from CODEC")
    return config.init_from


@torch.no_grad()
def replace_weights(networks: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights in the place of those of the same names."""
    parameters = dict(networks.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


def provenance(phase: Phase, config: TrainConfig, crops_seen: int, mlflow_run: str | None) -> dict[str, Any]:
    """What a codec says of the runs that it is from: this one, and those of the codec that it goes on from."""
    known: dict[str, Any] = {}
    if config.init_from is not None:
        _, fingerprint, before = read_config(config.init_from)
        known = {**(before if phase.follows else {}), f"{phase.name}_init_fingerprint": fingerprint}
    known |= {f"{phase.name}_crops": crops_seen, f"{phase.name}_shards": config.shards}
    if mlflow_run:
        known[f"{phase.name}_mlflow_run"] = mlflow_run
    return known
