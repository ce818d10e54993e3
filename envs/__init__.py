"""Gymnasium environments over the distiller; importing this package registers them."""

import gymnasium as gym

ENV_ID = "ksel/Distillation-v0"

if ENV_ID not in gym.registry:
    gym.register(
        ENV_ID,
        entry_point="envs.distillation:DistillationEnv",
        vector_entry_point="envs.vector:VectorDistillationEnv",
    )
