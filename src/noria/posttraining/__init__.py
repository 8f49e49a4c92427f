"""Post-training: supervised fine-tuning, reinforcement learning, preferences, rejection sampling."""

from noria.posttraining.advantages import group_advantages
from noria.posttraining.annotate import annotate
from noria.posttraining.grpo import improve
from noria.posttraining.lora import LoraConfig, adapt, merge
from noria.posttraining.ppo import improve_with_critic
from noria.posttraining.preference import Judged, Pair, PreferenceConfig, prefer
from noria.posttraining.reinforce import Grade, Monitor, Pool, Roll
from noria.posttraining.reward_model import RewardModelConfig, train_reward_model
from noria.posttraining.rl_config import GrpoConfig, PpoConfig
from noria.posttraining.sft import Example, SftConfig, conversation, example, fine_tune, trace_examples

__all__ = [
    "Example",
    "Grade",
    "GrpoConfig",
    "Judged",
    "LoraConfig",
    "Monitor",
    "Pair",
    "Pool",
    "PpoConfig",
    "PreferenceConfig",
    "RewardModelConfig",
    "Roll",
    "SftConfig",
    "adapt",
    "annotate",
    "conversation",
    "example",
    "fine_tune",
    "group_advantages",
    "improve",
    "improve_with_critic",
    "merge",
    "prefer",
    "trace_examples",
    "train_reward_model",
]
