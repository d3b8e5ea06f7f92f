"""Answers held to JSON schemas: by the real sampler, over the real vocabulary of a tiny model."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesteer_edge.engine.grammar import Grammar, JsonForm, gbnf_of
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import InputError
from safesteer_edge.guard.policy import SamplingSettings

PERSON = {
    "type": "object",
    "properties": {
        'naïve \\ "name"': {"type": "string", "maxLength": 5},
        "kind": {"enum": ["a\\b", "é"]},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    },
    "required": ['naïve \\ "name"', "kind", "age", "tags"],
    "$defs": {"tag": {"const": "x"}},
}


@pytest.fixture(scope="module")
def model(tiny_llama_path: Path) -> NativeModel:
    return NativeModel(tiny_llama_path)


def answer(model: NativeModel, gbnf: str, *, seed: int = 0, take_back: int = 0) -> str:
    """What is drawn under a grammar from random logits; take_back: every so often, so many."""
    rng = np.random.default_rng(seed)
    settings = SamplingSettings(temperature=1.0, top_k=8, top_p=1, min_p=0, seed=seed)
    token_ids: list[int] = []
    with (
        Grammar(gbnf, model.vocab_handle) as grammar,
        SamplerChain(settings, n_vocab=model.n_vocab, grammar=grammar) as chain,
    ):
        for step in range(4000):
            logits = rng.standard_normal(model.n_vocab).astype(np.float32)
            logits[model.special_tokens["<|im_end|>"]] += 8  # as soon as it may
            proposal = chain.propose(logits)
            token_ids.append(int(proposal.token_ids[proposal.drawn]))
            chain.accept(token_ids[-1])
            if model.is_end_of_generation(token_ids[-1]):
                return b"".join(map(model.piece, token_ids[:-1])).decode("utf-8", "replace")
            if take_back and step % 5 == 4 and len(token_ids) > take_back and step < 60:
                chain.take_back(take_back)
                del token_ids[-take_back:]
    raise AssertionError("it did not end")


@pytest.mark.parametrize("take_back", [0, 1, 4])
def test_answers_are_json_of_the_schema_also_where_tokens_were_taken_back(
    model: NativeModel, take_back: int
) -> None:
    gbnf = gbnf_of([JsonForm(PERSON)])
    for seed in range(20):
        told: dict[str, Any] = json.loads(answer(model, gbnf, seed=seed, take_back=take_back))
        assert list(told) == PERSON["required"]
        name = told['naïve \\ "name"']
        assert len(name) <= 5 or "\ufffd" in name
        assert told["kind"] in ("a\\b", "é")
        assert isinstance(told["age"], int)
        assert len(told["tags"]) <= 2 and set(told["tags"]) <= {"x"}


def test_one_of_several_forms_stands_between_its_texts(model: NativeModel) -> None:
    # Two definitions of one name are two.
    forms = [
        JsonForm(
            {"$ref": "#/$defs/it", "$defs": {"it": {"const": number}}},
            before=f"<call {number}>\n",
            after="\n</call>",
        )
        for number in (1, 2)
    ]
    told = {answer(model, gbnf_of(forms), seed=seed) for seed in range(40)}
    assert told == {"<call 1>\n1\n</call>", "<call 2>\n2\n</call>"}


def test_a_first_look_at_the_likeliest_finds_what_a_look_at_all_finds(
    tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NativeModel(tiny_llama_path)
    rng, settings = np.random.default_rng(0), SamplingSettings(temperature=0, top_k=8)
    gbnf = gbnf_of([JsonForm({"type": "string"})])
    for text in ("", '"', '"a', '"ab"'):
        logits = rng.standard_normal(model.n_vocab).astype(np.float32)
        found = []
        for n_first_look in (16, 64, 4096):
            monkeypatch.setattr("safesteer_edge.engine.grammar._N_FIRST_LOOK", n_first_look)
            with (
                Grammar(gbnf, model.vocab_handle) as grammar,
                SamplerChain(settings, n_vocab=model.n_vocab, grammar=grammar) as chain,
            ):
                for token_id in model.tokenize_plain(text):
                    chain.accept(token_id)
                found.append(chain.propose(logits).token_ids.tolist())
        assert found[0] == found[1] == found[2]


DEEP: dict[str, Any] = {}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"$ref": "https://example.com/a.json"}, r"\$ref"),
        ({"$ref": "#/$defs/missing"}, "cannot hold"),
        ({"type": "strange"}, "strange"),
        ({"type": "object", "properties": {"a": True}}, "cannot hold"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 10**9}, "counts to 1000000000"),
        ({"type": "string", "pattern": "^a{1,99999999}$"}, "counts to 99999999"),
        ({"type": "string", "pattern": "a"}, "cannot hold"),
        ({"type": "string", "pattern": "^([a-z]?){64}$"}, "cannot hold"),
        ({"type": "string", "pattern": f"^{'[a-z]?' * 64}$"}, "cannot hold"),
        ({"type": "string", "pattern": f"^{'(a|)' * 32}{'(|a)' * 32}$"}, "cannot hold"),
        ({"type": "string", "pattern": '^a"b$'}, "cannot hold"),
        ({"type": "string", "pattern": "^[^a]$"}, "cannot hold"),
        ({"enum": [*range(3000)]}, "3000 choices"),
        ({"const": "\ud800"}, "cannot hold"),
        ({"enum": ["x" * 70_000]}, "longer than"),
        ({"anyOf": []}, "cannot hold|cannot use"),
        ([], "cannot hold"),
        ({"const": float("nan")}, "cannot hold"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_named(
    model: NativeModel, schema: object, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        Grammar(gbnf_of([JsonForm(schema)]), model.vocab_handle).close()


def test_a_deep_schema_and_one_that_never_ends_take_nothing_down(model: NativeModel) -> None:
    for schema in (DEEP, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}):
        with contextlib.suppress(InputError):
            Grammar(gbnf_of([JsonForm(schema)]), model.vocab_handle).close()
