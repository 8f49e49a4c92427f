"""A random Llama in a folder as `noria import` writes it, with a byte-level tokenizer and a chat template of choice."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from noria.model import ModelConfig, Transformer, save_model

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|eot|>")
PLAIN = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Qwen's: tools in the system message, calls between tags.
TAGS = (
    "{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}"
    '{% endfor %}{{ \'<tool_call>\\n{"name": <name>, "arguments": <args>}\\n</tool_call><|im_end|>\\n\' }}{% endif %}'
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}{{ '\\n<tool_call>\\n' }}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{{ '\\n</tool_call>' }}"
    "{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Llama 3's: the reply is a JSON object.
BARE = (
    '{%- if tools %}{{ \'Respond with {"name": name, "parameters": arguments}\\n\' }}'
    "{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{% endif %}" + PLAIN
)


def write_tokenizer(folder: Path, template: str) -> Path:
    inner = Tokenizer(
        models.BPE({text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258]}))
    return folder


def write_imported_model(
    folder: Path, template: str = PLAIN, context: int = 1024, config: ModelConfig | None = None
) -> Path:
    write_tokenizer(folder, template)
    config = config or ModelConfig(
        vocab_size=259, width=32, layers=2, heads=2, kv_heads=1, ffn_width=64, context=context
    )
    (folder / "tokenizer.json").rename(folder / "source.json")
    save_model(folder, Transformer(config, seed=1), folder / "source.json")
    (folder / "source.json").unlink()
    return folder
