"""Raw records to training tokens: read, clean, deduplicate, decontaminate, mix, tokenise.

Import from the modules: `noria.data.tokenizer`, `noria.data.shards`, `noria.data.pii` and so on. Nothing is loaded
here, so that a stage's configuration can name a package without waiting for numpy and pyarrow.
"""
