"""all_action: an actor-critic that learns from the credit of all types, with Stable-Baselines3's face.

The reward of a decision is paid type by type (``info["credit/<type>"]``), so that one decision
teaches all bits at once: :func:`agents.all_action_gradient.policy_gradient`. The critic knows what a
decision earns on average and what comes after it; advantages are generalised (Schulman et al.
2016, arXiv 1506.02438). One student's life is enough, see ``--search online``.

No global generator is drawn from or seeded: a student trained beside it stays the same.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from scipy import special
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance, obs_as_tensor, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.all_action_branches import (
    Tally,
    allowed_types,
    batch_of_one,
    compare,
    fork_gradient,
    forkable,
    reward_of,
    wants_fork,
)
from agents.all_action_files import read_training, write_training
from agents.all_action_gradient import advantages, entropies, keep_alive, policy_gradient
from agents.evidence import Evidence, pull
from agents.factorised import (
    FactorisedNetwork,
    FactorisedPolicy,
    distinct,
    draw,
    log_probability,
)
from ksel.config import AllActionConfig
from ksel.errors import UsageError

BETAS = (0.8, 0.95)
"""Adam's: its second moment forgets within 20 updates, so that the policy follows what changes."""


@dataclass
class Rollout:
    """Decisions between two updates of the policy; each list has one entry per step of ``n`` students."""

    observations: list[Any]
    actions: list[np.ndarray]
    credits: list[np.ndarray]
    rewards: list[np.ndarray]
    dones: list[np.ndarray]

    @staticmethod
    def empty() -> Rollout:
        """Nothing collected yet."""
        return Rollout([], [], [], [], [])


class AllAction(BaseAlgorithm):
    """The actor-critic as an algorithm of Stable-Baselines3; its callbacks and loggers work.

    Args:
        env: an environment (or ``VecEnv``) of bits or weights; None = only to predict.
        settings: hyper-parameters.
        pool: names of the knowledge types; None = ``env.pool_names``.
        cost_per_type: what the reward loses for each type that is on (soft: per unit of weight);
            credit does not hold it.
        seed: of the network, the draws and the environment's first reset.
        verbose, tensorboard_log: as in Stable-Baselines3.
        observation_space, action_space: read where ``env`` is None.
    """

    policy: FactorisedNetwork

    def __init__(
        self,
        env: gym.Env | VecEnv | None,
        settings: AllActionConfig | None = None,
        *,
        pool: Sequence[str] | None = None,
        cost_per_type: float = 0.0,
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ) -> None:
        self.settings, self.cost_per_type = settings or AllActionConfig(), float(cost_per_type)
        super().__init__(
            FactorisedNetwork,
            env,
            self.settings.learning_rate,
            verbose=verbose,
            tensorboard_log=tensorboard_log,
            device="cpu",
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=(spaces.MultiBinary, spaces.Box),
        )
        if self.env is None:
            assert observation_space is not None
            assert action_space is not None
            assert pool is not None
            self.observation_space, self.action_space = observation_space, action_space
        self.pool = tuple(pool or cast(VecEnv, self.env).get_attr("pool_names")[0])
        self.kind = self.settings.soft if isinstance(self.action_space, spaces.Box) else "bits"
        self._setup_model()

    def _setup_model(self) -> None:
        seed = self.seed or 0
        self.policy = FactorisedNetwork(
            self.observation_space,
            self.action_space,
            self.kind,
            self.settings.concentration,
            self.settings.net_arch,
            self.settings.start,
            seed,
        )
        self.optimizer = torch.optim.Adam(
            self.policy.parameters(), lr=self.settings.learning_rate, betas=BETAS
        )
        self.rng = np.random.default_rng([seed, 1])
        self.rollout, self.tally = Rollout.empty(), Tally()
        self.evidence = Evidence(
            len(self.pool), self.settings.block, self.settings.memory, self.settings.doubt
        )
        if self.env is not None:
            self.env.seed(seed)

    # ----------------------------------------------------------------- learning

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str = "all_action",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> AllAction:
        """Learn from ``total_timesteps`` decisions of all students together (rounded up to whole steps).

        The policy is updated every ``n_steps`` decisions, before each fork, and at the end.
        """
        if reset_num_timesteps or self._last_obs is None:
            self.tally = Tally()
        total, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        callback.on_rollout_start()
        updates = 0
        while self.num_timesteps < total:
            decide = self._fork if self._branching() else self._step
            if not decide(callback):
                break
            full = len(self.rollout.rewards) >= self.settings.n_steps
            if full or self.num_timesteps >= total or self._branching():
                updates += 1
                callback.on_rollout_end()
                if log_interval and updates % log_interval == 0:
                    self.dump_logs()
                self.train()
                callback.on_rollout_start()
        self.rollout = Rollout.empty()
        callback.on_training_end()
        return self

    def _step(self, callback: BaseCallback) -> bool:
        """One decision of each student; False = a callback asks to stop."""
        env, observation = cast(VecEnv, self.env), cast(Any, self._last_obs)
        logits = self.policy.logits(obs_as_tensor(observation, self.device))
        p = special.expit(logits)
        actions = draw(p, self.kind, self.settings.concentration, self.rng)
        self._last_obs, rewards, dones, infos = env.step(actions)  # type: ignore[assignment]
        self.num_timesteps += env.num_envs
        if forkable(env, self.kind):
            self.tally.add(float(rewards[0]), 1, bool(dones[0]), infos[0])
        self._update_info_buffer(infos, dones)
        self.rollout.observations.append(observation)
        self.rollout.actions.append(actions)
        self.rollout.credits.append(np.stack([self._credit(info) for info in infos]))
        self.rollout.rewards.append(rewards + self._beyond(infos))
        self.rollout.dones.append(dones.astype(np.float64))
        reports = [
            (p[i].astype(np.float32), self._log_prob(actions[i], logits[i]))
            for i in range(env.num_envs)
        ]
        callback.update_locals(locals())
        return callback.on_step()

    def _credit(self, info: dict[str, Any]) -> np.ndarray:
        credit = np.array([info.get(f"credit/{name}", np.nan) for name in self.pool])
        return credit / info.get("reward_scale", 1.0) - self.cost_per_type

    def _beyond(self, infos: list[dict[str, Any]]) -> np.ndarray:
        """What an episode that was cut off by a time limit would still have earned, [n]."""
        values = np.zeros(len(infos))
        for i, info in enumerate(infos):
            if info.get("TimeLimit.truncated"):
                observation, _ = self.policy.obs_to_tensor(info["terminal_observation"])
                with torch.no_grad():
                    values[i] = self.settings.gamma * float(self.policy(observation)[1].sum())
        return values

    def _log_prob(self, action: np.ndarray, logits: np.ndarray) -> float:
        return log_probability(action, logits, self.kind, self.settings.concentration)

    def train(self) -> None:
        """One update from the decisions collected, if there are any."""
        rollout = self.rollout
        if not rollout.rewards:
            return
        settings = self.settings
        observations = [obs_as_tensor(part, self.device) for part in rollout.observations]
        logits, values = self.policy(stacked(observations))
        with torch.no_grad():
            last = self.policy(obs_as_tensor(cast(Any, self._last_obs), self.device))[1].sum(-1)
        shape = np.shape(rollout.rewards)
        credit, action = np.stack(rollout.credits), np.stack(rollout.actions)
        p = special.expit(logits.detach().numpy()).reshape(action.shape)
        # What the draw of each bit added to the reward is known: its mean is 0, and it goes.
        luck = np.nan_to_num((action - p) * credit).sum(-1)
        expected = values.detach().numpy().reshape(*shape, 2)
        now, after = advantages(
            np.array(rollout.rewards) - luck,
            expected,
            last.numpy(),
            np.array(rollout.dones),
            settings.gamma,
            settings.gae_lambda,
        )
        gradient = policy_gradient(
            logits.detach(),
            flat(action),
            flat(credit),
            flat(now + luck),
            flat(after),
            self.kind,
            settings.concentration,
        )
        gradient = self.evidence.weigh(gradient.view(action.shape)).view(gradient.shape)
        targets = flat(expected + np.stack([now, after], axis=-1))
        self._climb(logits, gradient, ((values - targets) ** 2).sum(-1).mean())
        returns = targets.sum(-1).numpy()
        explained = explained_variance(flat(expected).sum(-1).numpy(), returns)
        self.logger.record("train/explained_variance", float(explained))
        self.rollout = Rollout.empty()

    def _climb(self, logits: Tensor, gradient: Tensor, value_loss: Tensor | None) -> None:
        settings = self.settings
        gradient = pull(logits.detach(), gradient, settings.start, settings.anchor)
        gradient = keep_alive(logits.detach(), gradient, settings.entropy)
        policy_loss = -(logits * gradient).sum(-1).mean()
        loss = policy_loss if value_loss is None else policy_loss + value_loss
        self.optimizer.zero_grad()
        loss.backward()
        for net in (self.policy.actor, self.policy.critic):
            torch.nn.utils.clip_grad_norm_(net.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self._n_updates += 1
        self.logger.record("train/policy_gradient_loss", policy_loss.item())
        self.logger.record("train/entropy_loss", -entropies(logits.detach()).sum(-1).mean().item())
        self.logger.record("train/learning_rate", settings.learning_rate)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if value_loss is not None:
            self.logger.record("train/value_loss", value_loss.item())

    # ----------------------------------------------------------------- branches

    def _branching(self) -> bool:
        return wants_fork(cast(VecEnv, self.env), self.kind)

    def _fork(self, callback: BaseCallback) -> bool:
        """Try masks side by side and learn from how they compare; False = stop."""
        env, concentration = cast(VecEnv, self.env), self.settings.concentration
        logits, _ = self.policy(obs_as_tensor(cast(Any, self._last_obs), self.device))
        at = logits.detach().numpy()[0]
        p, allowed = special.expit(at), allowed_types(env, len(self.pool))
        count = env.get_attr("branch_count")[0]
        masks = distinct(p, count, self.kind, concentration, self.rng, allowed)
        branched = env.env_method("branch", masks)[0]
        advantage = compare(branched, masks, self.cost_per_type)
        gradient = fork_gradient(
            logits.detach(), masks, advantage, allowed, self.kind, concentration
        )
        self._climb(logits, gradient, None)
        self.num_timesteps += branched.decisions
        dones, infos = np.array([branched.terminated]), [dict(branched.info)]
        self.tally.add(reward_of(branched), branched.decisions, branched.terminated, infos[0])
        self._update_info_buffer(infos, dones)
        # the mask was picked for what it brought, not drawn: nobody knows how likely that was
        reports = [(p.astype(np.float32), math.nan)] * branched.decisions
        if branched.terminated and self.num_timesteps < self._total_timesteps:
            self._last_obs = env.reset()  # type: ignore[assignment]
        else:
            self._last_obs = batch_of_one(branched.observation)
        callback.update_locals(locals())
        return callback.on_step()

    # ----------------------------------------------------------------- log and files

    def dump_logs(self) -> None:
        """Write what was recorded, under Stable-Baselines3's names."""
        if self.ep_info_buffer:
            for name, key in (("ep_rew_mean", "r"), ("ep_len_mean", "l")):
                mean = safe_mean([episode[key] for episode in self.ep_info_buffer])
                self.logger.record(f"rollout/{name}", mean)
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        done = self.num_timesteps - self._num_timesteps_at_start
        self.logger.record("time/fps", int(done / seconds))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def frozen(self, final: str = "sample") -> FactorisedPolicy:
        """A copy of the policy as it is now.

        Raises:
            UsageError: the observation is not a ``Dict`` of vectors, as files of policies have it.
        """
        if not isinstance(self.observation_space, spaces.Dict):
            raise UsageError(
                "AllAction.save: the observation must be a Dict of vectors. Wrap the environment so "
                "that it gives its vector a name, such as training."
            )
        network = copy.deepcopy(self.policy)
        return FactorisedPolicy(network, self.pool, self.observation_space, final)

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write a folder: the policy's files, and what learning on needs. Nothing is pickled.

        Raises:
            UsageError: something is to be left out; here all is saved.
        """
        if exclude is not None or include is not None:
            raise UsageError("AllAction.save: exclude and include are not used; leave them out.")
        write_training(self.frozen(), self.optimizer, self._progress(), Path(path))

    def _progress(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "cost_per_type": self.cost_per_type,
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "n_updates": self._n_updates,
            "generators": [rng.bit_generator.state for rng in (self.rng, self.policy.rng)],
            "evidence": self.evidence.get_state(),
        }

    @classmethod
    def load(cls, path: Any, env: gym.Env | VecEnv | None = None, **more: Any) -> AllAction:  # type: ignore[override]
        """Read what :meth:`save` wrote; learning goes on where it stopped.

        Args:
            path: the folder.
            env: an environment to learn on in; None = only to predict.
            more: arguments of the class, such as ``verbose``.

        Raises:
            UsageError: a file is missing or damaged.
        """
        policy, moments, progress = read_training(Path(path))
        model = cls(
            env,
            AllActionConfig(**progress["settings"]),
            pool=policy.pool,
            cost_per_type=progress["cost_per_type"],
            seed=progress["seed"],
            observation_space=policy.space,
            action_space=policy.network.action_space,
            **more,
        )
        model.policy.load_state_dict(policy.network.state_dict())
        model.optimizer.load_state_dict({**model.optimizer.state_dict(), "state": moments})
        model.num_timesteps, model._n_updates = progress["num_timesteps"], progress["n_updates"]
        for rng, state in zip((model.rng, model.policy.rng), progress["generators"], strict=True):
            rng.bit_generator.state = state
        model.evidence.set_state(progress["evidence"])
        return model


def stacked(observations: list[Any]) -> Any:
    """Observations of several steps as one batch; parts by name, or one vector each."""
    if isinstance(observations[0], dict):
        return {name: torch.cat([part[name] for part in observations]) for name in observations[0]}
    return torch.cat(observations)


def flat(values: np.ndarray) -> Tensor:
    """[T, n, ...] to [T n, ...] float32."""
    return torch.as_tensor(values.reshape(-1, *values.shape[2:]), dtype=torch.float32)
