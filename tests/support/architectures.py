"""Tiny randomly initialized models of every causal-LM type of the installed transformers that can be built."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # the same model under other names
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "n_inner": 96,
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "ffn_dim": 96,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    # mixtures of experts and latent attention
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "sliding_window": 64,
}

CHANGES: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "qwen3_next": {"num_hidden_layers": 5},
    "qwen3_5_text": {"num_hidden_layers": 5},
    "qwen3_5_moe_text": {"num_hidden_layers": 5},
    "jamba": {"num_hidden_layers": 6, "attn_layer_offset": 2, "attn_layer_period": 4, "use_mamba_kernels": False},
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"]},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]},
    "minimax": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "olmo_hybrid": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 4},
    "bert": {"is_decoder": True},
    "cpmant": {"vocab_size": VOCABULARY, "dim_head": 16, "dim_ff": 96},
    "ctrl": {"dff": 96},
    "deepseek_v2": {"topk_group": 1, "n_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 2},
    "bailing_hybrid": {"num_hidden_layers": 8},
    "kimi_linear": {"num_hidden_layers": 5},
    "lfm3": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]},
    "qwen4_exp_text": {
        "num_hidden_layers": 5,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "shared_expert_intermediate_size": 32,
        "hc_lowrank": 16,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "gemma3n_text": {  # the last two layers use the keys and values of the first two
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
    },
    "gemma4_text": {  # heads of another size in the full layers
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 32,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
    },
    "gemma4_unified_text": {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 32},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]},
    "zamba": {  # as published, the attention layers have one set of weights
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "head_dim": None,
        "use_mamba_kernels": False,
    },
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "head_dim": None},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2, "state_size": 16},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
        },
    },
    "prophetnet": {
        "num_hidden_layers": None,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_decoder_attention_heads": 4,
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 16,
        "feed_forward_size": 96,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 16,
    },
    "rwkv": {"use_cache": False},  # its state is updated in place, which breaks a backward
    "xlnet": {"max_position_embeddings": None, "d_inner": 96},
    "xlstm": {"v_head_dim": None},
    "xmod": {"default_language": "en_XX"},
    "dots3_note_text": {  # heads of another number and size in the sliding layers
        "num_hidden_layers": 3,
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def causal_types() -> list[str]:
    """Return the model types that AutoModelForCausalLM knows, except multimodal ones."""
    return sorted(
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name in CONFIG_MAPPING and not CONFIG_MAPPING[name].sub_configs
    )


def build_architecture(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """Build a tiny model; exceptions from the type's config or modeling code propagate."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    default.allow_global_per_layer_attribute_access = True  # only to see which settings the type has
    wanted = {key: value for key, value in SHAPE.items() if getattr(default, key, None) is not None}
    if "kv_lora_rank" in wanted:  # latent attention, whose keys have the size of their two parts
        wanted |= {"num_key_value_heads": 4, "head_dim": 8}
    for key, value in {**CHANGES.get(model_type, {}), **changes}.items():
        if value is None:
            wanted.pop(key, None)
        else:
            wanted[key] = value
    if model_type == "bert" or "is_decoder" in wanted or model_type in _ENCODERS:
        wanted["is_decoder"] = True
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_class(**wanted))
    return model.eval()


_ENCODERS = {
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "separate, grouped-query": ("qwen2", {}),
    "separate, sinks": ("gpt_oss", {}),
    "separate, parallel block": ("gptj", {}),
    "fused by blocks": ("phi3", {}),
    "fused by blocks, query value key": ("codegen", {}),
    "fused by head": ("gpt_neox", {}),
    "fused by head, alibi": ("bloom", {}),
    "fused by head, query-key norm": ("persimmon", {}),
    "fused, multi-query": ("falcon", {}),
    "fused by head, no multi-query": ("falcon", {"multi_query": False}),
    "fused by group": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "fused, MPT": ("mpt", {}),
    "Conv1D": ("gpt2", {}),
    "multi-query GPT": ("gpt_bigcode", {}),
    "by head GPT": ("gpt_bigcode", {"multi_query": False}),
    "keys and values fused": ("jetmoe", {}),
    "latent attention": ("deepseek_v3", {}),
    "latent attention with a sink": ("hy_v4", {}),
    "mixture of experts": ("mixtral", {}),
    "hybrid, last layers not attention": ("lfm2", {}),
    "hybrid, state space": ("jamba", {}),
    "hybrid, gated delta": ("qwen3_next", {}),
    "hybrid, lightning": ("minimax", {}),
    "hybrid, a block used several times": ("zamba2", {}),
    "layers used several times": ("hrm_text", {}),
    "heads that differ by layer": ("dots3_note_text", {}),
    "keys and values shared by layers": ("gemma3n_text", {}),
    "soft-capped logits": ("gemma2", {}),
    "scaled logits": ("cohere", {}),
    "divided logits": ("granite", {}),
    "cross-attention that does not run": ("bart", {}),
}
"""A model type for each layout of the value projection and kind of logits."""
