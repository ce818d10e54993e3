"""The optimiser that teachers and students share: AdamW with linear warm-up and decay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def adamw(
    modules: Sequence[nn.Module], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Fused AdamW over all trainable parameters; biases and norms are not decayed."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


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
