"""All phases by their names, in the order in which a codec goes through them."""

from __future__ import annotations

from pipelines.train.config import PhaseName
from pipelines.train.phases.base import Phase
from pipelines.train.phases.phase1 import Phase1
from pipelines.train.phases.phase2 import Phase2
from pipelines.train.phases.phase3 import Phase3

PHASES: dict[PhaseName, Phase] = {
    "phase1": Phase1(),
    "phase2": Phase2(),
    "phase3": Phase3(),
}
