"""Raw records to training tokens: read, clean, deduplicate, decontaminate, mix, tokenise."""

from noria.data.shards import ShardSet, TokenStream, heldout_rows
from noria.data.tokenizer import Tokenizer, train_tokenizer

__all__ = ["ShardSet", "TokenStream", "Tokenizer", "heldout_rows", "train_tokenizer"]
