"""How wide the embeddings are that a projector gives, read from its last tensor.

`clip.vision.projection_dim` is not it for every kind. Source: clip_n_mmproj_embd in llama.cpp's
tools/mtmd/clip.cpp, and the tensor names of load_tensors there.
"""

from __future__ import annotations

from typing import Final

from safesteer_edge.formats.gguf_file import GgufFile

# Per projector type: the tensor whose ne[index] is the language model's width.
_LAST_TENSOR: Final[dict[str, tuple[str, int]]] = {
    "ldp": ("mm.model.mb_block.1.block.2.1.bias", 0),
    "ldpv2": ("mm.model.peg.0.bias", 0),
    "resampler": ("resampler.proj.weight", 0),
    "adapter": ("adapter.linear.dense_4h_to_h.weight", 1),
    "minicpmv4_6": ("mm.down.weight", 1),
    "minimax_m3": ("mm.merger.fc2.bias", 0),
    "janus_pro": ("mm.1.bias", 0),
    "mimovl": ("mm.2.weight", 1),
    "gemma3": ("mm.input_projection.weight", 0),
    "gemma3nv": ("mm.input_projection.weight", 0),
    "gemma4v": ("mm.input_projection.weight", 1),
    "gemma4uv": ("mm.input_projection.weight", 1),
    "gemma4a": ("mm.a.input_projection.weight", 1),
    "gemma4ua": ("mm.a.input_projection.weight", 1),
    "internvl": ("mm.model.mlp.3.weight", 1),
    "nemotron_v2_vl": ("mm.model.mlp.3.weight", 1),
    "qwen2a": ("mm.a.fc.weight", 1),
    "meralion": ("mm.a.mlp.3.weight", 1),
    "dots3note_a": ("mm.a.mlp.3.weight", 1),
    "granite_speech": ("a.proj_linear.weight", 1),
    "lfm2a": ("a.position_embd.weight", 0),
    # A main path and `deepstack` paths side by side; the model's width is one path's.
    "qwen3vl_merger": ("mm.2.bias", 0),
    **dict.fromkeys(
        ("qwen2vl_merger", "qwen2.5vl_merger", "exaone4_5", "youtuvl", "ling3vl"),
        ("mm.2.bias", 0),
    ),
    **dict.fromkeys(
        ("phi4", "pixtral", "lightonocr", "dots_ocr", "dots3note_v", "lfm2"), ("mm.2.weight", 1)
    ),
    **dict.fromkeys(
        ("kimivl", "paddleocr", "kimik25", "yasa2", "deepseek4v", "muse-glimmer"),
        ("mm.2.weight", 1),
    ),
    **dict.fromkeys(
        ("step3vl", "llama4", "idefics3", "deepseekocr", "deepseekocr2", "hunyuanvl"),
        ("mm.model.fc.weight", 1),
    ),
    **dict.fromkeys(("glm4v", "glm5v", "cogvlm"), ("mm.down.weight", 1)),
    **dict.fromkeys(
        ("ultravox", "voxtral", "musicflamingo", "qwen3a", "glma", "mimo_audio", "parakeet"),
        ("mm.a.mlp.2.weight", 1),
    ),
}


def embedding_width(file: GgufFile, projector_type: str) -> int | None:
    """Return n_embd of the language model that this projector feeds; None if that is unknown."""
    if projector_type == "granite4_vision":  # several projectors of this width each
        return file.integer("clip.vision.projection_dim")
    if projector_type == "mlp":  # LLaVA; the Yi variant has a norm between, and more tensors
        is_yi = file.tensor("mm.3.weight") is not None
        name, index = ("mm.3.bias", 0) if is_yi else ("mm.2.weight", 1)
    elif projector_type in _LAST_TENSOR:
        name, index = _LAST_TENSOR[projector_type]
    else:
        return None
    tensor = file.tensor(name)
    return tensor.shape[index] if tensor is not None and len(tensor.shape) > index else None
