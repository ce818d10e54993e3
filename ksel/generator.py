"""Random numbers of the student's own: dropout masks that no other user of torch can disturb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class OwnGenerator:
    """A state of torch's generator that is put in place only while the student draws from it.

    Args:
        device: where the student is.

    Attributes:
        state: the generator's state (on the CPU; a CUDA generator is seeded from it at each use).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.state: Tensor
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Start anew."""
        self.state = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def in_use(self, *, keep: bool = True) -> Iterator[None]:
        """Inside, whatever draws from torch's global generator draws from this one.

        Args:
            keep: go on from here next time; False for a look ahead.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.random.set_rng_state(self.state)
            if devices:
                torch.cuda.manual_seed(int(torch.randint(2**62, ()).item()))
            yield
            if keep:
                self.state = torch.random.get_rng_state()
