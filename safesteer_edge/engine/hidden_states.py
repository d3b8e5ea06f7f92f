"""The three routes to hidden states, the choice between them, and mean states over spans of tokens.

A feature is a block output, `layer_index` 0 … n_layer − 1, or the state after the final norm,
`layer_index` == n_layer (Hugging Face's last `hidden_states` entry; its `hidden_states[k]` with
0 < k < n_layer is block output k − 1).

route         what llama.cpp offers                                   good for
layer_input   input of block L + 1, exported under C++ names only;    chat: below noise
              another graph than those listed aborts the process
final_norm    embeddings mode, pooling NONE; some graphs then leave   chat: below noise
              out the logits
eval_callback cb_eval at `l_out-L` and `result_norm`: called for      calibration, other graphs
              every graph node
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import ContextView
from safesteer_edge.engine.native import c_function, lib
from safesteer_edge.engine.node_catcher import NodeCatcher, c_callback
from safesteer_edge.errors import EngineError

RouteName = Literal["layer_input", "final_norm", "eval_callback"]

# Architectures whose graph builders set t_layer_inp for every block (src/models/*.cpp of the
# llama.cpp inside llama-cpp-python 0.3.36, which pyproject.toml pins for this reason).
LAYER_INPUT_ARCHITECTURES = frozenset(
    {
        "gemma4",
        "gpt-oss",
        "hunyuan_vl",
        "lfm2",
        "lfm2moe",
        "llama",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
    }
)

# Their graphs leave the logits out in embeddings mode (src/models/lfm2.cpp).
_NO_LOGITS_BESIDE_EMBEDDINGS = frozenset({"lfm2", "lfm2moe"})
_FINAL_NORM_NODE = b"result_norm"
# Of one decode, at least: candidates, and the tokens of some openings.
MAX_ROWS_READ = 64


class HiddenStateRoute:
    """One way to read hidden states of the rows of the last decode. This one reads none.

    needs_outputs: a layer is read that graphs compute for rows with outputs alone: the last block's
    and what follows it.
    """

    name: RouteName

    def __init__(self, layers: tuple[int, ...] = (), n_layer: int = 0) -> None:
        self._layers = layers
        self.needs_outputs = any(layer >= n_layer - 1 for layer in layers)
        self._attached: ContextView | None = None

    def attach(self, context: ContextView) -> None:
        """Bind to a new context, before its first decode."""
        self._attached = context

    def before_answer(self) -> None:
        """Called when prefill is over and decoding steps begin."""

    def before_prefill(self) -> None:
        """Called before prompt tokens are evaluated."""

    def before_reading(self, n_rows: int) -> None:
        """Called before prompt tokens whose states are read, so many of them at once."""
        self.before_answer()

    def read(self, n_rows: int) -> NDArray[np.float32]:
        """States of the last decode's rows: float32 (n_rows, n_features), a copy."""
        return np.empty((n_rows, 0), dtype=np.float32)

    @property
    def _context(self) -> ContextView:
        if self._attached is None:
            raise EngineError("hidden states were asked for before the context was made")
        return self._attached


def choose_route(
    architecture: str,
    n_layer: int,
    layers: Sequence[int],
    *,
    wanted: RouteName | None = None,
) -> HiddenStateRoute:
    """The cheapest route that gives all of `layers` for this architecture.

    wanted: insist on one route (tests, calibration). Raises EngineError if it cannot serve.
    """
    names = usable_routes(architecture, n_layer, layers)
    if not names:
        raise EngineError(
            f"hidden states of layers {list(layers)}: expected block outputs 0 … {n_layer - 1}, "
            f"or {n_layer} alone (after the final norm)"
        )
    name = wanted or names[0]
    if name not in names:
        raise EngineError(f"route {name!r} cannot give layers {list(layers)} of {architecture!r}")
    route = next(r for r in (LayerInputRoute, FinalNormRoute, EvalCallbackRoute) if r.name == name)
    return route(tuple(layers), n_layer)


def usable_routes(architecture: str, n_layer: int, layers: Sequence[int]) -> tuple[RouteName, ...]:
    """The routes that give all of `layers` for this architecture, the cheapest first; () if none.

    A route that is left out here would abort the process, or leave decoding without logits.
    """
    blocks_only = all(0 <= layer < n_layer for layer in layers)
    inner_blocks = all(0 <= layer < n_layer - 1 for layer in layers)
    final_only = all(layer == n_layer for layer in layers)
    if not layers or not (blocks_only or final_only):
        return ()
    names: list[RouteName] = []
    if inner_blocks and architecture in LAYER_INPUT_ARCHITECTURES and _layer_input_calls():
        names.append("layer_input")
    if final_only and architecture not in _NO_LOGITS_BESIDE_EMBEDDINGS:
        names.append("final_norm")
    return (*names, "eval_callback")


def describe_route(name: str) -> str:
    """The route and its cost, for people. docs/evidence-calibration.md has the measurement."""
    if name != "eval_callback":
        return f"{name}, which costs nothing measurable"
    if c_callback() is None:
        return f"{name} in Python, which costs some 3 % of a token; see 'safesteer-edge doctor'"
    return f"{name} in C, which costs less than 1 % of a token"


class LayerInputRoute(HiddenStateRoute):
    """Input of block L + 1 = output of block L, read after any decode."""

    name: RouteName = "layer_input"

    def __init__(self, layers: tuple[int, ...], n_layer: int) -> None:
        super().__init__(layers, n_layer)
        self._get_call: Any = None
        # Of each layer the first row, and where those of the first and last layer lie.
        self._first_rows: list[NDArray[np.float32]] = []
        self._ends: tuple[int | None, int | None] = (None, None)
        self._first, self._last = min(layers), max(layers)

    def attach(self, context: ContextView) -> None:
        super().attach(context)
        calls = _layer_input_calls()
        if calls is None:
            raise EngineError("this llama.cpp does not export layer inputs")
        set_call, self._get_call = calls
        for layer in self._layers:
            set_call(context.handle, layer + 1, True)

    def read(self, n_rows: int) -> NDArray[np.float32]:
        handle, get_call, n_embd = self._context.handle, self._get_call, self._context.n_embd
        # What each token reads. The layers' rows lie in one buffer, in order and equally far apart
        # (llama_context::output_reserve): they have moved if their ends have.
        ends = get_call(handle, self._first + 1), get_call(handle, self._last + 1)
        if n_rows == 1 and ends == self._ends:
            return np.concatenate(self._first_rows)[np.newaxis, :]
        addresses = [get_call(handle, layer + 1) for layer in self._layers]
        parts = [_float_rows_at(address, n_rows, n_embd) for address in addresses]
        self._first_rows, self._ends = [rows[0] for rows in parts], ends
        return np.concatenate(parts, axis=1)


class FinalNormRoute(HiddenStateRoute):
    """State after the final norm, through embeddings mode.

    The mode makes every token of a batch an output, so it is on for decoding steps alone.
    """

    name: RouteName = "final_norm"

    def attach(self, context: ContextView) -> None:
        super().attach(context)
        self.before_prefill()

    def before_answer(self) -> None:
        lib.llama_set_embeddings(self._context.handle, True)

    def before_prefill(self) -> None:
        lib.llama_set_embeddings(self._context.handle, False)

    def read(self, n_rows: int) -> NDArray[np.float32]:
        n_embd = self._context.n_embd
        states = np.empty((n_rows, n_embd), dtype=np.float32)
        for row in range(n_rows):
            pointer = lib.llama_get_embeddings_ith(self._context.handle, row)
            if not pointer:
                raise EngineError(f"llama.cpp has no embeddings for row {row} of the last batch")
            states[row] = np.ctypeslib.as_array(pointer, shape=(n_embd,))
        return states


class EvalCallbackRoute(HiddenStateRoute):
    """`l_out-L` or `result_norm`, caught while the graph runs: for any graph.

    Give `callback` to the context that is made.
    """

    name: RouteName = "eval_callback"

    def __init__(self, layers: tuple[int, ...], n_layer: int) -> None:
        super().__init__(layers, n_layer)
        self.callback = NodeCatcher(
            [
                _FINAL_NORM_NODE if layer == n_layer else f"l_out-{layer}".encode()
                for layer in layers
            ]
        )

    def attach(self, context: ContextView) -> None:
        super().attach(context)
        self._make_room(max(MAX_ROWS_READ, lib.llama_n_seq_max(context.handle)))

    def before_answer(self) -> None:
        self.callback.enable(True)

    def before_prefill(self) -> None:
        self.callback.enable(False)

    def before_reading(self, n_rows: int) -> None:
        if n_rows > self._n_rows:
            self._make_room(n_rows)
        self.callback.enable(True)

    def _make_room(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self.callback.make_room(n_rows, self._context.n_embd)

    def read(self, n_rows: int) -> NDArray[np.float32]:
        return self.callback.take(n_rows)


# -- mean states over runs of tokens, summed up while the tokens are evaluated ---------------------


class SpanMeans:
    """spans: (sequence, places), each a run of tokens of one sequence; they may overlap."""

    def __init__(self, spans: Sequence[tuple[int, range]]) -> None:
        self._spans = spans
        self._sums: list[NDArray[np.float64]] = [np.zeros(()) for _ in spans]

    def wants(self, places: range) -> bool:
        """Whether any of these places, of whichever sequence, is in a span."""
        return any(
            span.start < places.stop and places.start < span.stop for _, span in self._spans if span
        )

    def add(
        self, sequences: Sequence[int], places: Sequence[int], states: NDArray[np.float32]
    ) -> None:
        """Count rows that were evaluated: float32 (n_rows, n_features)."""
        of, at = np.asarray(sequences), np.asarray(places)
        for index, (sequence, span) in enumerate(self._spans):
            inside = (of == sequence) & (at >= span.start) & (at < span.stop)
            if inside.any():
                self._sums[index] = self._sums[index] + states[inside].sum(axis=0, dtype=np.float64)

    def means(self, ends: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each span: float32 (n_spans, n_features); of an empty one the state given for it."""
        found = [
            total / len(span) if span else end
            for (_, span), total, end in zip(self._spans, self._sums, ends, strict=True)
        ]
        return np.array(found, dtype=np.float32).reshape(ends.shape)

    def beside(self, ends: NDArray[np.float32]) -> NDArray[np.float32]:
        """These states, and the spans' means: float32 (n_spans, 2, n_features)."""
        return np.stack([ends, self.means(ends)], axis=1)


# -- native calls that llama-cpp-python does not bind ----------------------------------------------


_SET_LAYER_INPUT = (
    "llama_set_embeddings_layer_inp",
    "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
    "?llama_set_embeddings_layer_inp@@YAXPEAUllama_context@@I_N@Z",
)
_GET_LAYER_INPUT = (
    "llama_get_embeddings_layer_inp",
    "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
    "?llama_get_embeddings_layer_inp@@YAPEAMPEAUllama_context@@I@Z",
)


@cache
def _layer_input_calls() -> tuple[Any, Any] | None:
    """The set and get calls of llama-ext.h, which llama.cpp exports under C++ names alone.

    None where the library does not export them.
    """
    index, context = ctypes.c_uint32, ctypes.c_void_p
    set_name, get_name = _exported(_SET_LAYER_INPUT), _exported(_GET_LAYER_INPUT)
    if set_name is None or get_name is None:
        return None
    set_call = c_function(lib._lib, set_name, None, context, index, ctypes.c_bool)
    return set_call, c_function(lib._lib, get_name, ctypes.c_void_p, context, index)


def _exported(names: Sequence[str]) -> str | None:
    return next((name for name in names if hasattr(lib._lib, name)), None)


def _float_rows_at(address: int | None, n_rows: int, n_embd: int) -> NDArray[np.float32]:
    """A view of llama.cpp's memory, which the next decode overwrites."""
    if not address:
        raise EngineError("llama.cpp has no hidden states of the last batch")
    raw = (ctypes.c_float * (n_rows * n_embd)).from_address(address)
    return np.ctypeslib.as_array(raw).reshape(n_rows, n_embd)
