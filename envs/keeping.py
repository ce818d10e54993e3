"""The dataclasses that the state of a run may hold: all that an environment's snapshot is made of."""

from __future__ import annotations

from envs.amortized import Amortized
from envs.calibration import Calibration, Verdict
from envs.distillation import EnvSnapshot
from envs.observation import Features
from envs.reward import DropScale, Exploration
from envs.seats import SeatsSnapshot
from ksel.balance import RunningSizes
from ksel.credit import CreditState
from ksel.objectives import Fit
from ksel.packing import records
from ksel.probe import Ridge
from ksel.records import Snapshot
from ksel.stacked import StackedSnapshot
from ksel.trust import TrustWatch

KNOWN = records(
    Amortized,
    Calibration,
    CreditState,
    DropScale,
    EnvSnapshot,
    Exploration,
    Features,
    Fit,
    Ridge,
    RunningSizes,
    SeatsSnapshot,
    Snapshot,
    StackedSnapshot,
    TrustWatch,
    Verdict,
)
