"""The model: its shape, its forward pass, its folder on disk."""

from noria.model.config import ModelConfig
from noria.model.folder import ModelFolderError, load_model, read_config, save_model, save_state
from noria.model.transformer import Transformer

__all__ = ["ModelConfig", "ModelFolderError", "Transformer", "load_model", "read_config", "save_model", "save_state"]
