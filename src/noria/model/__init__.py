"""The model: its shape and cost, its forward pass, its folder on disk."""

from noria.model.config import MLA, LocalAttention, ModelConfig, MoE, RopeScaling
from noria.model.folder import ModelFolderError, load_model, read_config, save_model, save_state
from noria.model.moe import balance_experts
from noria.model.transformer import Transformer

__all__ = [
    "MLA",
    "LocalAttention",
    "MoE",
    "ModelConfig",
    "ModelFolderError",
    "RopeScaling",
    "Transformer",
    "balance_experts",
    "load_model",
    "read_config",
    "save_model",
    "save_state",
]
