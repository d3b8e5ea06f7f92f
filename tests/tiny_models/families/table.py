"""The families that tests prove the engine on: one entry each.

Required metadata and tensors: load_arch_hparams and load_arch_tensors in llama.cpp's src/models/.
"""

from __future__ import annotations

from typing import Final

from tests.tiny_models.families import templates
from tests.tiny_models.families.family import Family
from tests.tiny_models.families.tensors import (
    HEAD_WIDTH,
    N_EMBD,
    N_EMBD_KV,
    N_FF,
    N_HEAD,
    Tensor,
    Tensors,
    attention,
    experts,
    feed_forward,
    linear,
    mamba2,
    norms,
)
from tests.tiny_models.families.vocabulary import Tokenizer

_CHATML_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN = Tokenizer(
    "gpt2",
    "qwen2",
    (*_CHATML_CONTROL, "<|vision_start|>", "<|vision_end|>", "<img>", "</img>"),
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pieces=("<think>", "</think>"),
)
_SMOLVLM = Tokenizer(
    "gpt2",
    "smollm",
    (
        *(*_CHATML_CONTROL, "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"),
        "<row_1_col_1>",
    ),
    bos="<|im_start|>",
    eos="<end_of_utterance>",
    pieces=("\n\n",),
)
_SENTENCE_PIECE = ("<unk>", "<s>", "</s>")
_MISTRAL = Tokenizer(
    "llama", "default", _SENTENCE_PIECE, "<s>", "</s>", adds_bos=True, unknown="<unk>"
)
_PHI3 = Tokenizer(
    "llama",
    "default",
    (*_SENTENCE_PIECE, "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    bos="<s>",
    eos="<|end|>",
    unknown="<unk>",
)
_GEMMA = Tokenizer(
    "llama",
    "default",
    (
        *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        *("<start_of_image>", "<end_of_image>"),
    ),
    bos="<bos>",
    eos="<end_of_turn>",
    adds_bos=True,
    unknown="<unk>",
)
_LFM2 = Tokenizer(
    "gpt2",
    "lfm2",
    (
        *("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    ),
    bos="<|startoftext|>",
    eos="<|im_end|>",
    adds_bos=True,
)
_GRANITE = Tokenizer(
    "gpt2",
    "dbrx",
    ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
    bos="<|end_of_text|>",
    eos="<|end_of_text|>",
)
_FALCON = Tokenizer(
    "gpt2", "falcon3", ("<|end_of_text|>", *_CHATML_CONTROL), "<|end_of_text|>", "<|im_end|>"
)
_GPT_OSS = Tokenizer(
    "gpt2",
    "gpt-4o",
    (
        *("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        *("<|call|>", "<img>", "</img>"),
    ),
    bos="<|startoftext|>",
    eos="<|return|>",
)

_ROTARY = {"rope.dimension_count": HEAD_WIDTH}
_HEADS = {"attention.key_length": HEAD_WIDTH, "attention.value_length": HEAD_WIDTH}
# Time, height, width: pairs of a head's numbers.
_M_ROPE = {"rope.dimension_sections": (2, 3, 3, 0)}
_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
# Attention in every second block, the others recurrent.
_EVERY_SECOND = {"attention.head_count_kv": (0, 2, 0, 2)}
_MAMBA2 = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 2 * N_EMBD,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 1,
}
# The fifth of qwen35's blocks guesses a token further ahead, and plays no part in decoding.
_GUESSING_BLOCK = 4
_DELTA_NET_HEADS, _DELTA_NET_WIDTH = 2, 16
# Windows shorter than the tests' prompts, so that tokens do leave them.
_WINDOW = 16


def _llama(_layer: int) -> Tensors:
    yield from norms("attn_norm", "ffn_norm")
    yield from attention()
    yield from feed_forward()


def _qwen2(_layer: int) -> Tensors:
    yield from norms("attn_norm", "ffn_norm")
    yield from attention(has_bias=True)
    yield from feed_forward()


def _qwen3(_layer: int) -> Tensors:
    yield from norms("attn_norm", "ffn_norm")
    yield from attention(head_norms=True)
    yield from feed_forward()


def _qwen3moe(_layer: int) -> Tensors:
    yield from norms("attn_norm", "ffn_norm")
    yield from attention(head_norms=True)
    yield from experts(4, 32)


def _qwen35(layer: int) -> Tensors:
    yield from norms("attn_norm", "post_attention_norm")
    yield from feed_forward()
    if layer == _GUESSING_BLOCK:
        yield from linear("nextn.eh_proj", N_EMBD, 2 * N_EMBD)
        yield from norms("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
    if layer % 2 or layer == _GUESSING_BLOCK:
        yield from linear("attn_q", 2 * N_EMBD)  # half of it is a gate
        yield from linear("attn_k", N_EMBD_KV)
        yield from linear("attn_v", N_EMBD_KV)
        yield from linear("attn_output", N_EMBD)
        yield from norms("attn_q_norm", "attn_k_norm", width=HEAD_WIDTH)
        return
    n_value = _DELTA_NET_HEADS * _DELTA_NET_WIDTH
    yield from linear("attn_qkv", 3 * n_value)
    yield from linear("attn_gate", n_value)
    yield Tensor("ssm_conv1d.weight", (3 * n_value, 4))
    yield Tensor("ssm_dt.bias", (_DELTA_NET_HEADS,))
    yield Tensor("ssm_a", (_DELTA_NET_HEADS,))
    yield from linear("ssm_beta", _DELTA_NET_HEADS)
    yield from linear("ssm_alpha", _DELTA_NET_HEADS)
    yield from norms("ssm_norm", width=_DELTA_NET_WIDTH)
    yield from linear("ssm_out", N_EMBD, n_value)


def _gemma3(_layer: int) -> Tensors:
    yield from norms("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    yield from attention(head_norms=True)
    yield from feed_forward()


def _phi3(_layer: int) -> Tensors:
    yield from norms("attn_norm", "ffn_norm")
    yield from linear("attn_qkv", N_EMBD + 2 * N_EMBD_KV)
    yield from linear("attn_output", N_EMBD)
    yield from linear("ffn_up", 2 * N_FF)  # gate and up
    yield from linear("ffn_down", N_EMBD, N_FF)


def _lfm2(layer: int) -> Tensors:
    yield from norms("attn_norm", "ffn_norm")
    yield from feed_forward()
    if layer % 2:
        yield from attention(head_norms=True)
        return
    yield Tensor("shortconv.conv.weight", (N_EMBD, 3))
    yield from linear("shortconv.in_proj", 3 * N_EMBD)
    yield from linear("shortconv.out_proj", N_EMBD)


def _granite_hybrid(layer: int) -> Tensors:
    yield from norms("attn_norm", "ffn_norm")
    yield from feed_forward()
    if layer % 2:
        yield from attention()
    else:
        yield from mamba2(2 * N_EMBD, 16, 1, 8, 4)


def _falcon_h1(_layer: int) -> Tensors:
    yield from norms("attn_norm")
    yield Tensor("ffn_norm", (N_EMBD,))
    yield from attention()
    yield from mamba2(2 * N_EMBD, 16, 1, 8, 4)
    yield from feed_forward()


def _gpt_oss(_layer: int) -> Tensors:
    yield from norms("attn_norm", "post_attention_norm")
    for part, n_out in (("q", N_EMBD), ("k", N_EMBD_KV), ("v", N_EMBD_KV), ("output", N_EMBD)):
        yield from linear(f"attn_{part}", n_out, has_bias=True)
    yield Tensor("attn_sinks.weight", (N_HEAD,))
    yield from experts(4, 32, has_bias=True)


FAMILIES: Final = (
    Family(
        "llama", "llama", "Llama 2 and 3, SmolLM2, SmolVLM, Yi", _SMOLVLM, templates.SMOLVLM,
        _llama, "idefics3", _ROTARY,
    ),
    Family(
        "mistral", "llama", "Mistral 7B, LLaVA-1.6, Vicuna", _MISTRAL, templates.MISTRAL,
        _llama, "mlp", _ROTARY,
    ),
    Family(
        "qwen2", "qwen2", "Qwen2 and 2.5, InternVL 2.5 and 3", _QWEN, templates.QWEN2,
        _qwen2, "internvl",
    ),
    Family(
        "qwen2vl", "qwen2vl", "Qwen2-VL, Qwen2.5-VL", _QWEN, templates.QWEN2VL,
        _qwen2, "qwen2vl_merger", _M_ROPE,
    ),
    Family(
        "qwen3", "qwen3", "Qwen3, InternVL 3.5", _QWEN, templates.QWEN3,
        _qwen3, "internvl", _HEADS,
    ),
    Family(
        "qwen3vl", "qwen3vl", "Qwen3-VL", _QWEN, templates.QWEN3,
        _qwen3, "qwen3vl_merger", {**_HEADS, **_M_ROPE, "n_deepstack_layers": 2},
    ),
    Family(
        "qwen3moe", "qwen3moe", "Qwen3-30B-A3B", _QWEN, templates.QWEN3,
        _qwen3moe, "internvl", {**_HEADS, **_EXPERTS},
    ),
    Family(
        "qwen35", "qwen35", "Qwen3.5", _QWEN, templates.QWEN35,
        _qwen35, "qwen3vl_merger",
        {
            **_HEADS, **_M_ROPE, **_ROTARY, **_MAMBA2,
            "full_attention_interval": 2,
            "nextn_predict_layers": 1,
            "ssm.inner_size": _DELTA_NET_HEADS * _DELTA_NET_WIDTH,
            "ssm.state_size": _DELTA_NET_WIDTH,
            "ssm.time_step_rank": _DELTA_NET_HEADS,
            "ssm.group_count": _DELTA_NET_HEADS,
        },
        n_blocks=5,
    ),
    Family(
        "gemma3", "gemma3", "Gemma 3", _GEMMA, templates.GEMMA3,
        _gemma3, "gemma3",
        {**_HEADS, "attention.sliding_window": _WINDOW, "attention.sliding_window_pattern": 2},
    ),
    Family(
        "phi3", "phi3", "Phi-3 and 4, LLaVA-Phi-3", _PHI3, templates.PHI3,
        _phi3, "mlp", {**_ROTARY, "rope.scaling.original_context_length": 2048},
    ),
    Family(
        "lfm2", "lfm2", "LFM2, LFM2-VL", _LFM2, templates.LFM2,
        _lfm2, "lfm2", {**_EVERY_SECOND, "shortconv.l_cache": 3}, output_norm="token_embd_norm",
    ),
    Family(
        "granitehybrid", "granitehybrid", "Granite 4 H", _GRANITE, templates.GRANITE,
        _granite_hybrid, None, {**_EVERY_SECOND, **_MAMBA2, **_ROTARY},
    ),
    Family(
        "falcon-h1", "falcon-h1", "Falcon-H1", _FALCON, templates.LFM2,
        _falcon_h1, None, {**_HEADS, **_MAMBA2, **_ROTARY},
    ),
    Family(
        "gpt-oss", "gpt-oss", "gpt-oss, InternVL 3.5 GPT-OSS", _GPT_OSS, templates.GPT_OSS,
        _gpt_oss, "internvl",
        {**_HEADS, **_ROTARY, **_EXPERTS, "attention.sliding_window": _WINDOW},
    ),
)  # fmt: skip


def family_named(name: str) -> Family:
    """Return one of them."""
    return next(family for family in FAMILIES if family.name == name)
