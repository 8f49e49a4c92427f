"""Models of the Hugging Face world: folders and GGUF files in, folders and GGUF files out."""

from noria.model.huggingface.export import export_folder
from noria.model.huggingface.families import UnsupportedModel
from noria.model.huggingface.gguf_export import export_gguf
from noria.model.huggingface.importing import import_model

__all__ = ["UnsupportedModel", "export_folder", "export_gguf", "import_model"]
