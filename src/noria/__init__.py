"""noria: the whole LLM training chain, from raw text to a deployed model and back."""
