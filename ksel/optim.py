"""The optimiser that teachers and students share: AdamW with linear warm-up and decay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

RATE = "rate"
"""Key of a parameter group: its learning rate in multiples of that of the update."""


def adamw(
    modules: Sequence[nn.Module],
    learning_rate: float,
    weight_decay: float,
    head: Sequence[Tensor] = (),
    head_rate: float = 1.0,
) -> torch.optim.AdamW:
    """Fused AdamW over all trainable parameters; biases and norms are not decayed.

    Args:
        modules: whose parameters are trained.
        learning_rate: to begin with; see :func:`set_rate`.
        weight_decay: of the parameters with more than one dimension.
        head: those of the parameters that have a learning rate of their own.
        head_rate: that rate in multiples of the others'.

    Returns:
        The optimiser; its first group holds the decayed parameters outside the head.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    own = {id(p) for p in head} if head_rate != 1.0 else set()
    groups = []
    for rate, part in (
        (1.0, [p for p in parameters if id(p) not in own]),
        (head_rate, [p for p in parameters if id(p) in own]),
    ):
        decayed = [p for p in part if p.ndim > 1]
        groups.append({"params": decayed, "weight_decay": weight_decay, RATE: rate})
        kept = [p for p in part if p.ndim <= 1]
        groups.append({"params": kept, "weight_decay": 0.0, RATE: rate})
    filled = [group for number, group in enumerate(groups) if number < 2 or group["params"]]
    return torch.optim.AdamW(filled, lr=learning_rate, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of an update; each group has its own multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[RATE]


def allocate_moments(optimizer: torch.optim.AdamW) -> list[Tensor]:
    """Give AdamW its state before the first step, so that a reset or a copy of it is in place.

    Returns:
        Step count and both moments of each parameter, one after the other.
    """
    moments: list[Tensor] = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        moments += [state["step"], state["exp_avg"], state["exp_avg_sq"]]
    return moments


def linear_schedule(update: int, updates: int, warmup: float) -> float:
    """Factor of the peak learning rate for update number ``update`` (from 0) of ``updates``.

    Rises linearly over the first ``warmup`` share, then falls linearly; never 0 within the budget.
    """
    rising = int(warmup * updates)
    if update < rising:
        return (update + 1) / (rising + 1)
    return (updates - update) / max(1, updates - rising)
