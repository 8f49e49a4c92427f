"""Every option of the model as a small configuration; the tests of this folder run over all of them."""

from __future__ import annotations

import torch

from noria.model import ModelConfig, Transformer

PLAIN = {"vocab_size": 50, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "context": 32}

MLA: dict = {
    "kv_heads": 4,
    "qk_norm": False,
    "mla": {"kv_rank": 12, "query_rank": 10, "nope_width": 6, "rope_width": 4, "value_width": 5},
}

OPTIONS: dict[str, dict] = {
    "none": {},
    "untied": {"tied": False},
    "one head": {"heads": 1, "kv_heads": 1},
    "as many key heads": {"kv_heads": 4, "qk_norm": False},
    "no qk norm": {"qk_norm": False},
    "explicit head width": {"explicit_head_width": 12},
    "norm eps": {"norm_eps": 0.1},
    "swiglu": {"activation": "swiglu"},
    "geglu": {"activation": "geglu"},
    "qkv bias": {"qkv_bias": True, "qk_norm": False},
    "post norm": {"post_norm": True},
    "embedding scale": {"embedding_scale": 5.66},
    "attention scale": {"attention_scale": 0.7},
    "attention soft cap": {"attention_soft_cap": 2.0},
    "logit soft cap": {"logit_soft_cap": 3.0},
    "rope base": {"rope_base": 500.0},
    "linear rope": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "yarn": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 64, "beta_fast": 8.0}},
    "llama3 rope": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_context": 64}, "rope_base": 100.0},
    "nope": {"nope_every": 2},
    "nope without norm": {"nope_every": 2, "qk_norm": False},
    "local": {"local": {"window": 3}},
    "local and global": {
        "layers": 3,
        "local": {"window": 4, "global_every": 3, "rope_base": 100.0},
        "rope_scaling": {"kind": "linear", "factor": 8.0},
    },
    "mla": {**MLA},
    "mla without a query latent": {**MLA, "mla": {**MLA["mla"], "query_rank": None}},
    "mla, values as wide as keys": {**MLA, "mla": {**MLA["mla"], "value_width": 10}},
    "mla with all": {
        **MLA,
        "attention_gate": "element",
        "forget_gate": True,
        "local": {"window": 4, "global_every": 2},
        "attention_scale": 0.4,
    },
    "mla soft cap": {**MLA, "attention_soft_cap": 2.0},
    "gated heads": {"attention_gate": "head"},
    "gated elements": {"attention_gate": "element"},
    "one gated head": {"heads": 1, "kv_heads": 1, "attention_gate": "element"},
    "forgetting": {"forget_gate": True, "nope_every": 1},
    "forgetting, rotated and local": {"forget_gate": True, "local": {"window": 4}},
    "experts": {"moe": {"experts": 6, "chosen": 2, "expert_width": 16}},
    "shared experts": {
        "layers": 3,
        "activation": "swiglu",
        "moe": {"experts": 5, "chosen": 3, "expert_width": 8, "shared": 2, "route_scale": 2.5, "first_dense": 1},
    },
    "qwen3 experts": {
        "activation": "swiglu",
        "moe": {"experts": 4, "chosen": 2, "expert_width": 16, "score": "softmax"},
    },
    "softmax experts as they are": {
        "moe": {"experts": 4, "chosen": 2, "expert_width": 16, "score": "softmax", "normalise": False}
    },
    "attention residuals": {"attention_residuals": 1},
    "block attention residuals": {"layers": 4, "attention_residuals": 3},
    "deepseek": {
        **MLA,
        "layers": 3,
        "activation": "swiglu",
        "rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 64, "attention_factor": 1.0},
        "moe": {"experts": 4, "chosen": 2, "expert_width": 8, "shared": 1, "first_dense": 1},
    },
    "gemma": {
        "activation": "geglu",
        "post_norm": True,
        "explicit_head_width": 16,
        "attention_scale": 0.2,
        "attention_soft_cap": 5.0,
        "logit_soft_cap": 3.0,
        "embedding_scale": 5.66,
        "qk_norm": False,
        "local": {"window": 4, "global_every": 2},
    },
}


def option(name: str, **changes) -> ModelConfig:
    return ModelConfig(**{**PLAIN, **OPTIONS[name], **changes})


def randomised(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose output projections are not zero and whose norms are not one, so that every part takes part."""
    model, generator = Transformer(config, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            if isinstance(tensor, torch.nn.Parameter):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
            elif tensor.is_floating_point():  # the routers' biases
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def random_tokens(config: ModelConfig, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
