"""Which layers keep a recurrent state, and how large it is.

Sources: llama_hparams::n_embd_r and n_embd_s, and where is_recr_impl is set in src/models/, in
llama.cpp.
"""

from __future__ import annotations

from typing import Final

from safesteer_edge.formats.gguf_file import GgufArray, GgufFile

# Recurrent but for every so many layers, four unless the file says otherwise.
_INTERVAL_ARCHITECTURES: Final = frozenset({"qwen3next", "qwen35", "qwen35moe", "minimax-01"})
_DEFAULT_INTERVAL: Final = 4
# Both in every layer, side by side.
_PARALLEL_ARCHITECTURES: Final = frozenset({"falcon-h1"})


def split_layers(
    file: GgufFile, prefix: str, kv_widths: list[int], n_embd: int
) -> list[tuple[int, int]]:
    """For each layer the numbers in the cache per token, and those of its recurrent state."""
    state = state_width(file, prefix, n_embd)
    if not state:
        return [(width, 0) for width in kv_widths]
    if prefix in _PARALLEL_ARCHITECTURES:
        return [(width, state) for width in kv_widths]
    flags = _recurrent_flags(file, prefix, kv_widths)
    return [
        (0, state) if is_recurrent else (width, 0)
        for width, is_recurrent in zip(kv_widths, flags, strict=True)
    ]


def state_width(file: GgufFile, prefix: str, n_embd: int) -> int:
    """Numbers of recurrent state, a layer and sequence: the convolution's and the scan's."""

    def value(key: str) -> int:
        return file.integer(f"{prefix}.{key}", 0) or 0

    if head := value("wkv.head_size"):
        return n_embd * (value("token_shift_count") or 2) + n_embd * head
    if cached := value("shortconv.l_cache"):
        return n_embd * (cached - 1)
    inner, state = value("ssm.inner_size"), value("ssm.state_size")
    convolution = max(0, value("ssm.conv_kernel") - 1)
    return convolution * (inner + 2 * value("ssm.group_count") * state) + inner * state


def _recurrent_flags(file: GgufFile, prefix: str, kv_widths: list[int]) -> list[bool]:
    n_layer = len(kv_widths)
    said = per_layer(file, f"{prefix}.attention.recurrent_layers", n_layer)
    if said:
        return [bool(flag) for flag in said]
    if prefix in _INTERVAL_ARCHITECTURES:
        interval = file.integer(f"{prefix}.full_attention_interval") or _DEFAULT_INTERVAL
        return [(index + 1) % interval != 0 for index in range(n_layer)]
    if prefix.startswith("nemotron_h"):  # a third kind of layer has neither
        widths = per_layer(file, f"{prefix}.feed_forward_length", n_layer) or [0] * n_layer
        return [not kv and not ff for kv, ff in zip(kv_widths, widths, strict=True)]
    return [width == 0 for width in kv_widths]


def per_layer(file: GgufFile, key: str, n_layer: int) -> list[int]:
    """A value that may be given once or per layer, for each layer; [] if it is missing."""
    value = file.metadata.get(key)
    if isinstance(value, GgufArray):
        values = [int(each) for each in file.numbers(key).tolist()]
        return values[:n_layer] + [0] * (n_layer - len(values))
    number = file.integer(key)
    return [] if number is None else [number] * n_layer
