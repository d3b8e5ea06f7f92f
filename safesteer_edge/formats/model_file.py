"""Language models in GGUF: what the header says, checked before llama.cpp loads the file.

llama.cpp checks much of this with GGML_ASSERT, which ends the process. Source of the rules:
llama_model_base::load_hparams in llama.cpp's src/llama-model.cpp.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.gguf_file import GgufFile, read_gguf
from safesteer_edge.formats.gguf_header import (
    FILE_TYPES,
    UNCOMPUTABLE_TYPES,
    GgufArray,
    GgufLimits,
    GgufTensor,
)
from safesteer_edge.formats.projector_file import ProjectorInfo, check_projector

# -- the tokenizer metadata of a language model, checked for what llama.cpp takes on trust ---------
# Source: llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp.

TOKENS_KEY: Final = "tokenizer.ggml.tokens"
_MODEL_KEY = "tokenizer.ggml.model"
_TYPES_KEY = "tokenizer.ggml.token_type"
_SCORES_KEY = "tokenizer.ggml.scores"
_MERGES_KEY = "tokenizer.ggml.merges"
_PRE_KEY = "tokenizer.ggml.pre"

# Left out: 'bert' and 't5' belong to models that embed text, 'none' and 'test' have no words.
_TOKENIZERS = ("gpt2", "llama", "gemma4", "plamo2", "rwkv", "hybriddna", "whitespace")
_TOKENIZERS_WITH_MERGES = frozenset({"gpt2", "gemma4", "hybriddna", "whitespace"})
_PRE_WITHOUT_MERGES = "kimi-k2"
_PRES_WITHOUT_BOS = ("chatglm-bpe", "glm4", "glm5")  # others have one by default
_WHITESPACE = "whitespace"
# Bytes that UTF-8 is made of. llama.cpp looks for a token for each of those that no other token of
# a text covers: 'llama' ends the process where there is none, and 'rwkv' reads on without end.
_UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))
# The longest real tokens known are runs of a few hundred spaces. plamo2's loader takes time
# with the square of a token's length.
_MAX_TOKEN_BYTES = 4_096
_MAX_TOKENS = 4_000_000
_BYTE_TYPE = 6  # llama_token_type
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_RWKV_BYTE = re.compile(rb"([^\\])|\\x([0-9a-f]{2})|\\([^x])", re.DOTALL)
_RWKV_ESCAPES = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
# Ids that generation is steered by. llama.cpp ignores others that are out of range (unknown,
# padding …), and there are good models with such a padding id.
_USED_IDS = ("bos", "eos", "eot", "eom")


def check_vocabulary(file: GgufFile) -> int:
    """Return the number of tokens.

    Takes 20 ms for 49,152 tokens. Raises ModelFileError for a missing or unknown tokenizer, for
    token lists that do not fit together, and for tokens that crash llama.cpp.
    """
    tokenizer = file.text(_MODEL_KEY)
    if tokenizer is None:
        raise file.error("it has no tokenizer", "get the whole model, not a part of it")
    if tokenizer not in _TOKENIZERS:
        raise file.error(
            f"its tokenizer is of kind {tokenizer!r}; expected one of {', '.join(_TOKENIZERS)}",
            "use a model that is made for chat",
        )
    _check_merges(file, tokenizer)
    tokens = file.strings(TOKENS_KEY)
    if not 0 < len(tokens) <= _MAX_TOKENS:
        raise file.error(f"its vocabulary has {len(tokens)} tokens")
    _check_distinct(file, tokens)
    _check_token_types(file, tokens)
    _check_bytes(file, tokenizer, tokens)
    scores = file.array(_SCORES_KEY)
    if scores is not None and scores.length < len(tokens):
        raise file.error(f"it has {scores.length} scores for {len(tokens)} tokens")
    for name in _USED_IDS:
        token_id = file.integer(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None and not 0 <= token_id < len(tokens):
            raise file.error(f"its {name} token is {token_id}, of {len(tokens)} tokens")
        has_none = tokenizer == "gemma4" or file.text(_PRE_KEY) in _PRES_WITHOUT_BOS
        is_added = file.metadata.get(f"tokenizer.ggml.add_{name}_token") is True
        if token_id is None and has_none and (is_added or (tokenizer, name) == ("gemma4", "bos")):
            raise file.error(f"it begins or ends each text with a {name} token, and has none")
    return len(tokens)


def _check_merges(file: GgufFile, tokenizer: str) -> None:
    if file.text(_PRE_KEY) == _WHITESPACE != tokenizer and tokenizer in _TOKENIZERS_WITH_MERGES:
        # No other tokenizer takes the spaces out, and llama.cpp asserts that they are gone.
        raise file.error(f"its {tokenizer!r} tokenizer splits text as 'whitespace' ones do")
    merges = file.metadata.get(_MERGES_KEY)
    if merges is None:
        if tokenizer in _TOKENIZERS_WITH_MERGES and file.text(_PRE_KEY) != _PRE_WITHOUT_MERGES:
            raise file.error(f"its {tokenizer!r} tokenizer has no merges")
    elif not isinstance(merges, GgufArray) or merges.element_type != "str":
        raise file.error(f"metadata key {_MERGES_KEY!r} is not an array of texts")


def _check_distinct(file: GgufFile, tokens: list[bytes]) -> None:
    """llama.cpp stops the process where two tokens have one text, as it reads texts: up to a NUL,
    and with names of its own for empty ones."""
    longest = max(map(len, tokens))
    if longest > _MAX_TOKEN_BYTES:
        raise file.error(f"a token has {longest} bytes; expected at most {_MAX_TOKEN_BYTES}")
    distinct = set(tokens)
    if len(distinct) == len(tokens) and b"" not in distinct and not any(0 in t for t in tokens):
        return  # nearly always, and five times as fast as looking for the culprit
    seen: dict[bytes, int] = {}
    for index, token in enumerate(tokens):
        text = token.split(b"\0", 1)[0] or b"[EMPTY_%d]" % index
        first = seen.setdefault(text, index)
        if first != index:
            raise file.error(f"tokens {first} and {index} are both {text!r}")


def _check_token_types(file: GgufFile, tokens: list[bytes]) -> None:
    """A byte token's text is parsed for its byte, and the byte used as an index (#25969)."""
    if file.array(_TYPES_KEY) is None:
        return
    types = file.numbers(_TYPES_KEY)
    if len(types) != len(tokens):
        raise file.error(f"it has {len(types)} token types for {len(tokens)} tokens")
    for index in np.flatnonzero(types == _BYTE_TYPE):
        if not _BYTE_TOKEN.fullmatch(tokens[index]):
            raise file.error(f"token {index} is a byte by type, and {tokens[index]!r} by its text")


def _check_bytes(file: GgufFile, tokenizer: str, tokens: list[bytes]) -> None:
    """Text of any kind can be written in tokens."""
    if tokenizer == "rwkv":
        found = (_RWKV_BYTE.fullmatch(token) for token in tokens if len(token) <= 4)
        covered = {_rwkv_byte(*match.groups()) for match in found if match}
    elif tokenizer in ("llama", "plamo2"):
        texts = set(tokens)
        is_bare = tokenizer == "llama"
        covered = {
            bytes((byte,))
            for byte in range(256)
            if b"<0x%02X>" % byte in texts or (is_bare and byte and bytes((byte,)) in texts)
        }
    else:
        return  # what has no token is left out of the text
    for byte in _UTF8_BYTES:
        if bytes((byte,)) not in covered:
            raise file.error(
                f"its {tokenizer!r} tokenizer has no token for byte 0x{byte:02X}",
                "convert the model again; its tokenizer may be of another kind",
            )


def _rwkv_byte(bare: bytes | None, code: bytes | None, escaped: bytes | None) -> bytes:
    if escaped is not None:
        return _RWKV_ESCAPES.get(escaped, escaped)
    return bytes.fromhex(code.decode()) if code else bare or b""


__all__ = [
    "ModelInfo",
    "ProjectorInfo",
    "check_language_model",
    "check_projector",
    "check_projector_fits",
    "read_model",
]

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_MAX_EMBEDDING_LENGTH = 65_536
_MAX_HEADS = 1024
_MAX_CONTEXT = 2**31 - 1  # positions are int32
_GUESSED = 1024  # LLAMA_FTYPE_GUESSED, a flag beside the file type
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_MAX_POOLING_TYPE = 4  # LLAMA_POOLING_TYPE_RANK
# Their graphs assert that RoPE turns the whole of each head, and that keys and values are as wide.
# fmt: off
_FULL_ROTARY = frozenset({
    "apertus", "arcee", "baichuan", "chameleon", "cogvlm", "deci", "deepseek", "dots1", "ernie4_5",
    "ernie4_5-moe", "exaone", "exaone4", "falcon", "granite", "granitemoe", "hunyuan-dense",
    "hunyuan-moe", "hunyuan_vl", "internlm2", "llama", "llama4", "mistral3", "olmo", "olmo2",
    "olmoe", "orion", "paddleocr", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl",
    "qwen3vlmoe", "seed_oss", "smollm3", "starcoder2", "xverse",
})
# fmt: on
_F32_SUFFIXES = (".ssm_a", ".ssm_conv1d.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_TEMPLATE_KEY = "tokenizer.chat_template"
# Their header is read like a model's, but they are something else.
_OTHER_KINDS = {
    "clip": ("it is a projector (mmproj)", "pass it with --mmproj, beside a language model"),
    "controlvector": ("it is a control vector", "name a language model"),
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the program needs to know about a language model.

    n_layer: blocks that make the next token, the first is number 0; blocks behind them that guess
        tokens further ahead (multi-token prediction) do not count.
    n_ctx_train: tokens of context it was trained for.
    quantization: as in file names ('Q4_1', 'Q4_K_M'). size_bytes: of the file, or of all its parts.
    parts: the other files of a split model.
    """

    path: Path
    architecture: str
    name: str
    n_layer: int
    n_embd: int
    n_ctx_train: int
    n_vocab: int
    quantization: str
    size_bytes: int
    chat_template: str | None
    vocabulary_sha256: str
    tensor_table_sha256: str
    parts: tuple[Path, ...] = ()


def read_model(path: Path) -> GgufFile:
    """Return a model's header; of one that is split, given by its first part, that of the whole.

    Places of tensors are then those in the file that merging the parts gives, so that it is the
    same model. Raises ModelFileError as `read_gguf`, and for a part that is missing or another's.
    """
    first = read_gguf(path)
    n_parts = first.integer("split.count", 0) or 0
    if n_parts <= 1:
        return first
    number = (first.integer("split.no", 0) or 0) + 1
    prefix = path.name.removesuffix(_part_suffix(number, n_parts))
    what = f"it is part {number} of a model in {n_parts} files"
    if prefix == path.name:
        suffix = _part_suffix(number, n_parts)
        raise first.error(f"{what}, which go by their names", f"call it …{suffix} again")
    if number != 1:
        raise first.error(what, f"load the first: {prefix}{_part_suffix(1, n_parts)}")
    parts = [first]
    for number in range(2, n_parts + 1):
        place = path.with_name(prefix + _part_suffix(number, n_parts))
        if not place.exists():
            raise first.error(f"{what}, and {place.name!r} is not beside it", "get all of them")
        parts.append(read_gguf(place))
        found = parts[-1].integer("split.no"), parts[-1].integer("split.count", n_parts)
        # llama.cpp asserts the type.
        if found != (number - 1, n_parts) or parts[-1].types["split.no"] != "u16":
            raise parts[-1].error(f"it does not say that it is part {number} of {n_parts}")
    return _whole(parts)


def _part_suffix(number: int, n_parts: int) -> str:
    return f"-{number:05}-of-{n_parts:05}.gguf"  # llama_split_path's


def _whole(parts: Sequence[GgufFile]) -> GgufFile:
    first = parts[0]
    tensors: list[GgufTensor] = []
    end = first.data_offset
    for part in parts:
        moved = end - part.data_offset
        alignment = part.integer("general.alignment", 32) or 32
        for tensor in part.tensors:
            tensors.append(replace(tensor, offset=tensor.offset + moved))
            end = max(end, tensors[-1].offset + tensor.size_bytes + -tensor.size_bytes % alignment)
    if not len({tensor.name for tensor in tensors}) == len(tensors) <= GgufLimits().n_tensors:
        raise first.error(f"its parts have {len(tensors)} tensors, too many or one of them twice")
    return replace(
        first,
        tensors=tuple(tensors),
        size_bytes=sum(part.size_bytes for part in parts),
        parts=tuple(part.path for part in parts[1:]),
    )


def check_language_model(model: Path | GgufFile) -> ModelInfo:
    """Return what a GGUF language model is, after checking that it hangs together.

    model: its path, or its header if `read_model` has read that.
    Takes 50 ms for a vocabulary of 49,152 tokens; the weights are not read.
    Raises ModelFileError with the reason and what to do about it.
    """
    file = model if isinstance(model, GgufFile) else read_model(model)
    architecture = file.architecture
    _check_kind(file, architecture)
    n_blocks = _number(file, f"{architecture}.block_count", 1, _MAX_LAYERS)
    n_layer = n_blocks - _number(file, f"{architecture}.nextn_predict_layers", 0, n_blocks - 1, 0)
    n_embd = _number(file, f"{architecture}.embedding_length", 1, _MAX_EMBEDDING_LENGTH)
    n_ctx_train = _number(file, f"{architecture}.context_length", 1, _MAX_CONTEXT)
    _check_heads(file, architecture, n_blocks, n_embd)
    _check_experts(file, architecture, n_blocks)
    _check_details(file, architecture)
    n_vocab = check_vocabulary(file)
    _check_tensors(file, n_blocks, n_embd, n_vocab)
    return ModelInfo(
        path=file.path,
        architecture=architecture,
        name=file.text("general.name") or file.path.stem,
        n_layer=n_layer,
        n_embd=n_embd,
        n_ctx_train=n_ctx_train,
        n_vocab=n_vocab,
        quantization=_quantization(file),
        size_bytes=file.size_bytes,
        chat_template=file.text(_TEMPLATE_KEY),
        vocabulary_sha256=file.array_sha256(TOKENS_KEY),
        tensor_table_sha256=file.tensor_table_sha256(),
        parts=file.parts,
    )


def check_projector_fits(mmproj: Path, info: ModelInfo) -> ProjectorInfo:
    """What the projector is, after checking it, and that it feeds models of this width."""
    projector_info = check_projector(mmproj)
    width = projector_info.projection_dim
    if width is not None and width != info.n_embd:
        raise ModelFileError(
            f"projector {str(mmproj)!r} feeds models of width {width}, and {info.path.name!r} has "
            f"width {info.n_embd}; use the mmproj file that belongs to this model"
        )
    return projector_info


def _check_kind(file: GgufFile, architecture: str) -> None:
    if architecture in _OTHER_KINDS:
        raise file.error(*_OTHER_KINDS[architecture])


def _number(file: GgufFile, key: str, least: int, most: int, default: int | None = None) -> int:
    value = file.integer(key, default)
    if value is None:
        raise file.error(f"metadata key {key!r} is missing")
    if not least <= value <= most:
        raise file.error(f"metadata key {key!r} is {value}; expected {least} to {most}")
    return value


def _per_layer(file: GgufFile, key: str, n_layer: int, most: int) -> list[int]:
    """Return a value that may be given once or per layer, for each layer; [] if it is missing."""
    if key not in file.metadata:
        return []
    if not isinstance(file.metadata[key], GgufArray):
        return [_number(file, key, 0, most)] * n_layer
    values = file.numbers(key)
    if len(values) != n_layer or not np.issubdtype(values.dtype, np.integer):
        raise file.error(f"metadata key {key!r} is not a list of {n_layer} integers")
    numbers = [int(value) for value in values.tolist()]
    if not 0 <= min(numbers) <= max(numbers) <= most:
        raise file.error(f"metadata key {key!r} has values outside 0 to {most}")
    return numbers


def _check_heads(file: GgufFile, architecture: str, n_layer: int, n_embd: int) -> None:
    """Attention heads: some, unless the model is recurrent, and shared out evenly."""
    prefix = f"{architecture}.attention"
    heads = _per_layer(file, f"{prefix}.head_count", n_layer, _MAX_HEADS)
    is_recurrent = any(
        key.startswith((f"{architecture}.ssm.", f"{architecture}.wkv.")) for key in file.metadata
    )
    if not any(heads) and not is_recurrent:
        raise file.error(f"metadata key {f'{prefix}.head_count'!r} is missing or 0")
    kv_heads = _per_layer(file, f"{prefix}.head_count_kv", n_layer, _MAX_HEADS) or heads
    for head_count, kv_count in zip(heads, kv_heads, strict=bool(heads)):
        if head_count and kv_count and head_count % kv_count:
            raise file.error(f"{head_count} attention heads cannot share {kv_count} KV heads")
    if heads and heads[0]:
        _check_head_width(file, architecture, n_embd // heads[0])


def _check_head_width(file: GgufFile, architecture: str, default: int) -> None:
    """RoPE turns pairs of numbers, at most all of a head; some graphs want exactly all."""
    prefix = f"{architecture}.attention"
    key_width = _number(file, f"{prefix}.key_length", 1, _MAX_EMBEDDING_LENGTH, default)
    value_width = _number(file, f"{prefix}.value_length", 1, _MAX_EMBEDDING_LENGTH, default)
    key = f"{architecture}.rope.dimension_count"
    n_rotary = _number(file, key, 0, key_width, key_width)
    if n_rotary % 2 and key in file.metadata:
        raise file.error(f"metadata key {key!r} is {n_rotary}; expected an even number")
    if architecture in _FULL_ROTARY and not key_width == value_width == n_rotary:
        raise file.error(
            f"its heads have keys of {key_width}, values of {value_width} and RoPE over "
            f"{n_rotary} numbers; expected one width"
        )


def _check_experts(file: GgufFile, architecture: str, n_layer: int) -> None:
    """The numbers of a mixture of experts, which llama.cpp asserts."""
    prefix = f"{architecture}.expert"
    n_experts = _number(file, f"{prefix}_count", 0, _MAX_EXPERTS, 0)
    n_groups = _number(file, f"{prefix}_group_count", 0, _MAX_EXPERTS, 0)
    n_groups_used = _number(file, f"{prefix}_group_used_count", 0, _MAX_EXPERTS, 0)
    n_used = max(_per_layer(file, f"{prefix}_used_count", n_layer, _MAX_EXPERTS), default=0)
    if n_experts <= 1 and architecture.startswith("hunyuan"):
        return  # dense models of this family say 1, and llama.cpp reads it as 0
    if n_experts == 0:
        good = n_used == n_groups == 0
    else:
        good = 0 < n_used <= n_experts and n_groups < n_experts
    if n_groups > 1:
        good = good and n_experts % n_groups == 0 and 0 < n_groups_used < n_groups
    if not good:
        raise file.error(
            f"its {n_experts} experts, {n_used} of them used, in {n_groups} groups, "
            f"{n_groups_used} of them used, do not fit together"
        )


def _check_details(file: GgufFile, architecture: str) -> None:
    """Values that llama.cpp asserts while it loads, or while it computes."""
    scaling = file.text(f"{architecture}.rope.scaling.type", "none")
    if scaling not in _ROPE_SCALINGS:
        raise file.error(f"its RoPE scaling is {scaling!r}", "use a newer version, or another file")
    _number(file, f"{architecture}.pooling_type", 0, _MAX_POOLING_TYPE, 0)
    for key, value in file.metadata.items():
        if not (key.startswith(f"{architecture}.attention.") and key.endswith("epsilon")):
            continue
        if not isinstance(value, float) or not 0 <= value < 1:  # nor NaN
            raise file.error(f"metadata key {key!r} is {value!r}; expected a small number")


def _check_tensors(file: GgufFile, n_layer: int, n_embd: int, n_vocab: int) -> None:
    embedding = file.tensor("token_embd.weight")
    if embedding is None:
        raise file.error("it has no token embedding", "get the whole model, not a part of it")
    if embedding.shape != (n_embd, n_vocab):
        raise file.error(
            f"its token embedding has shape {embedding.shape}; the metadata says "
            f"{(n_embd, n_vocab)}"
        )
    for tensor in file.tensors:
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) >= n_layer:
            raise file.error(f"tensor {tensor.name!r} is in a block beyond the {n_layer} it has")
        if not _can_be_stored_so(tensor):
            raise file.error(f"tensor {tensor.name!r} is stored as {tensor.type_name}")


def _can_be_stored_so(tensor: GgufTensor) -> bool:
    """Tell whether ggml's CPU code computes with this tensor; where it cannot, the process ends.

    Norms, biases and recurrences must be F32 (measured: F16 and BF16 end it too), and matrices
    not integers, but for one table of experts per token.
    """
    if len(tensor.shape) <= 1 or tensor.name.endswith(_F32_SUFFIXES):
        return tensor.type_name == "F32"
    return tensor.type_name not in UNCOMPUTABLE_TYPES or "tid2eid" in tensor.name


def _quantization(file: GgufFile) -> str:
    """Return the file type by name, or the tensor type that most of the bytes are in."""
    file_type = file.integer("general.file_type")
    if file_type is not None and file_type & ~_GUESSED in FILE_TYPES:
        return FILE_TYPES[file_type & ~_GUESSED]
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        sizes[tensor.type_name] += tensor.size_bytes
    return sizes.most_common(1)[0][0]
