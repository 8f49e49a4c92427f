"""Post-training: supervised fine-tuning, reinforcement learning, preferences, rejection sampling."""

from noria.posttraining.advantages import group_advantages
from noria.posttraining.annotate import annotate
from noria.posttraining.grpo import improve
from noria.posttraining.ppo import improve_with_critic
from noria.posttraining.reinforce import Grade, Monitor, Pool, Roll
from noria.posttraining.rl_config import GrpoConfig, PpoConfig
from noria.posttraining.sft import Example, SftConfig, example, fine_tune, trace_examples

__all__ = [
    "Example",
    "Grade",
    "GrpoConfig",
    "Monitor",
    "Pool",
    "PpoConfig",
    "Roll",
    "SftConfig",
    "annotate",
    "example",
    "fine_tune",
    "group_advantages",
    "improve",
    "improve_with_critic",
    "trace_examples",
]
