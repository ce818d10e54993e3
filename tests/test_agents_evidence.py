"""When all_action believes its credit, and where it goes without."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from credit_env import FIRST, CreditEnv

from agents.all_action import AllAction
from agents.evidence import FEWEST, Evidence, pull
from ksel.config import AllActionConfig


def fed(samples: np.ndarray, block: int = 5, memory: int = 12, doubt: float = 3.0) -> Evidence:
    """Evidence after so many decisions [T, K] of one student."""
    evidence = Evidence(samples.shape[1], block, memory, doubt)
    for sample in samples:
        evidence.weigh(torch.as_tensor(sample[None, None], dtype=torch.float64))
    return evidence


def test_noise_is_rarely_believed_and_then_little():
    rng = np.random.default_rng(0)
    found = np.array([fed(rng.normal(size=(60, 4))).believed() for _ in range(200)])
    assert (found != 0).mean() < 0.03
    assert np.abs(found).mean() < 0.005


def test_what_stands_out_is_believed_nearly_whole():
    rng = np.random.default_rng(0)
    samples = np.array([2.0, -2.0, 0.0]) + rng.normal(size=(60, 3))
    found = fed(samples).believed()
    assert found[0] == pytest.approx(samples[:, 0].mean(), rel=0.1)
    assert found[1] == pytest.approx(samples[:, 1].mean(), rel=0.1)
    assert found[2] == 0


def test_shrinkage_by_hand():
    """Blocks of one decision: mean 2, sd 1, four of them: standard error 1/2, t = 4."""
    spread = np.sqrt(3) / 2  # sample deviation 1
    samples = 2.0 + spread * np.array([[1.0], [-1.0], [1.0], [-1.0]])
    assert fed(samples, block=1, doubt=3.0).believed() == pytest.approx(2.0 * (1 - (3 / 4) ** 2))
    assert fed(samples, block=1, doubt=4.1).believed() == 0


def test_fewer_blocks_than_needed_tell_nothing():
    samples = np.array([[1.0], [1.1], [0.9], [1.05]])
    assert fed(samples[: FEWEST - 1], block=1).believed() == 0
    assert fed(samples[:FEWEST], block=1).believed() > 0.9


def test_blocks_beyond_the_memory_are_forgotten():
    rng = np.random.default_rng(0)
    samples = np.concatenate([np.full((40, 1), 5.0), np.full((40, 1), -1.0)])
    samples += 0.1 * rng.normal(size=samples.shape)
    assert fed(samples, memory=8).believed() == pytest.approx(-1.0, abs=0.1)


def test_what_cannot_be_selected_is_left_alone_and_is_no_evidence():
    rng = np.random.default_rng(0)
    samples = 1.0 + 0.1 * rng.normal(size=(40, 2))
    samples[::2, 1] = 0.0  # every other decision without the second type
    evidence = fed(samples)
    assert evidence.believed() == pytest.approx([1.0, 1.0], abs=0.1)
    weighed = evidence.weigh(torch.tensor([[[0.5, 0.0]]], dtype=torch.float64))
    assert weighed[0, 0, 0] == pytest.approx(1.0, abs=0.1)
    assert weighed[0, 0, 1] == 0


def test_students_side_by_side_are_one_sample():
    several, one = Evidence(1, 1, 12, 3.0), Evidence(1, 1, 12, 3.0)
    for value in (1.0, 1.2, 0.8, 1.1):
        several.weigh(torch.tensor([[[value - 0.5], [value + 0.5]]], dtype=torch.float64))
        one.weigh(torch.tensor([[[value]]], dtype=torch.float64))
    assert several.believed() == pytest.approx(one.believed())


def test_block_0_believes_everything():
    gradient = torch.tensor([[[0.3, -7.0]]])
    assert torch.equal(Evidence(2, 0, 12, 3.0).weigh(gradient), gradient)


def test_the_state_is_json_and_goes_on_the_same():
    rng = np.random.default_rng(0)
    samples = 0.5 + rng.normal(size=(47, 3))
    samples[:, 2] = 0.0
    whole, half = fed(samples), fed(samples[:23])
    other = Evidence(3, 5, 12, 3.0)
    other.set_state(json.loads(json.dumps(half.get_state())))
    for sample in samples[23:]:
        other.weigh(torch.as_tensor(sample[None, None]))
    assert other.get_state() == whole.get_state()
    assert np.array_equal(other.believed(), whole.believed())


def test_the_pull_is_the_gradient_of_the_divergence_from_the_start():
    start, anchor = 0.9, 0.3
    logits = torch.tensor([[2.0, -1.0, 0.3]], dtype=torch.float64, requires_grad=True)
    p, q = torch.sigmoid(logits), torch.tensor(start, dtype=torch.float64)
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    (expected,) = torch.autograd.grad(-anchor * divergence, logits)
    found = pull(logits.detach(), torch.zeros_like(logits), start, anchor)
    torch.testing.assert_close(found, expected)


def test_a_lasting_credit_moves_a_bit_as_far_as_the_anchor_says():
    logits, credit = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.1, -0.2]])
    for _ in range(4000):
        p = torch.sigmoid(logits)
        logits = logits + 5.0 * pull(logits, p * (1 - p) * credit, 0.9, 0.05)
    at_start = np.log(0.9 / 0.1)
    assert logits[0] == pytest.approx([at_start + 2.0, at_start - 4.0], abs=0.01)


class Noisy(CreditEnv):
    """Credits of the environment, times ``signal``, in noise of deviation 1."""

    signal = 0.0

    def step(self, action: np.ndarray):
        observation, reward, terminated, truncated, info = super().step(action)
        rng = np.random.default_rng([7, self.steps_of_noise])
        self.steps_of_noise += 1
        for name in self.pool_names:
            if f"credit/{name}" in info:
                info[f"credit/{name}"] = self.signal * info[f"credit/{name}"] + rng.normal()
        return observation, reward, terminated, truncated, info

    steps_of_noise = 0


def distance(signal: float, decisions: int = 200, seed: int = 0, **settings) -> np.ndarray:
    """How far each bit's probability is from the start after some decisions."""
    env = Noisy()
    env.signal = signal
    model = AllAction(env, AllActionConfig(gamma=0.0, **settings), seed=seed)
    model.learn(decisions)
    observation = {name: value[None] for name, value in env.reset(seed=1)[0].items()}
    logits = model.policy.logits({k: torch.as_tensor(v) for k, v in observation.items()})
    return 1 / (1 + np.exp(-logits[0])) - 0.97


def test_in_noise_alone_the_policy_stays_at_its_start():
    assert np.abs(distance(0.0)).max() < 0.05
    assert np.abs(distance(0.0, block=0, anchor=0.0)).max() > 0.5


def test_types_that_harm_through_the_noise_go():
    """Which of them, and when, differs by seed and machine; those that help stay."""
    found = np.array(
        [distance(20.0, decisions, seed) for decisions in (200, 400) for seed in range(3)]
    )
    harms = FIRST < 0
    assert (found[:, harms].min(1) < -0.5).sum() >= 2
    assert found[:, ~harms].min() > -0.1
