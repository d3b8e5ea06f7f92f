"""Pictures in a conversation, and the alignment vector that acts only while they are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.engine.prompt_items import PromptItem, TokenRun
from safesteer_edge.errors import InputError, MediaError
from safesteer_edge.session.prompt import prompt_items
from safesteer_edge.session.runtime import open_runtime
from safesteer_edge.session.session import Session
from tests.guarded_tiny import PROBE_LAYERS, QUIET, WAVERING, GuardedTiny
from tests.media.sample_pictures import load_image
from tests.numpy_llama import NumpyLlama
from tests.session.turns import ask, opened

# The KV cache is in F16 and NumPy's is in F32: what that does to a logit of deviation 2.
LOGIT_TOLERANCE = 0.05


def logit(score: float | None) -> float:
    assert score is not None
    return float(np.log(score) - np.log1p(-score))


def test_the_vector_is_on_from_the_picture_to_the_end_of_the_conversation(
    guarded_tiny: GuardedTiny, picture: Path
):
    bundle = guarded_tiny.bundle(QUIET, has_vector=True)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        turns = [
            ask(session, "Hello there"),
            ask(session, "What is this?", images=[picture]),
            ask(session, "And then?"),
        ]
        session.reset()
        turns.append(ask(session, "Hello there"))
    assert [turn.prefill.vector_active for turn in turns] == [False, True, True, False]
    assert [turn.ended.guard.vector_active for turn in turns] == [False, True, True, False]
    assert [turn.ended.usage.media_tokens for turn in turns] == [0, 4, 4, 0]
    assert turns[2].prefill.n_reused_tokens > turns[1].prefill.n_prompt_tokens
    assert turns[3].text == turns[0].text
    assert turns[3].scores == turns[0].scores


def test_a_vector_changes_no_byte_of_an_answer_to_pure_text(guarded_tiny: GuardedTiny):
    answers = []
    for bundle in (guarded_tiny.bundle(QUIET), guarded_tiny.bundle(QUIET, has_vector=True)):
        with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
            answers.append(ask(session, "Hello there").text)
    assert answers[0] == answers[1]


def test_the_vector_changes_the_answer_to_a_picture(guarded_tiny: GuardedTiny, picture: Path):
    answers = {}
    for has_vector in (True, False):
        bundle = guarded_tiny.bundle(QUIET, has_vector=has_vector)
        with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
            turn = ask(session, "What is this?", images=[picture])
            answers[has_vector] = turn.text
            assert turn.ended.guard.vector_active == has_vector
    assert answers[True] != answers[False]


@pytest.mark.parametrize(("gate", "is_on"), [(0.0, True), (1.0, False)])
def test_a_gated_vector_is_on_where_the_prompt_looks_harmful(
    guarded_tiny: GuardedTiny, picture: Path, tmp_path: Path, gate: float, is_on: bool
):
    parts = guarded_tiny.parts(bias=WAVERING, has_vector=True)
    assert parts.vector is not None
    gated = replace(parts, vector=replace(parts.vector, gate=gate))
    write_bundle(tmp_path / "gated", gated)
    always = guarded_tiny.bundle(WAVERING, has_vector=is_on)
    turns = []
    for bundle in (tmp_path / "gated", always):
        with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
            ask(session, "Hello there")
            turns.append(ask(session, "What is this?", images=[picture]))
    first, second = turns
    assert first.prefill.vector_active == first.ended.guard.vector_active == is_on
    assert (first.text, first.scores) == (second.text, second.scores)
    assert first.prefill.prompt_score == second.prefill.prompt_score
    assert first.prefill.n_reused_tokens == second.prefill.n_reused_tokens


@pytest.mark.parametrize("mode", ["monitor", "off"])
def test_a_guard_that_only_watches_does_not_steer_by_the_vector(
    guarded_tiny: GuardedTiny, picture: Path, mode: str
):
    bundle = guarded_tiny.bundle(WAVERING, has_vector=True)
    with opened(guarded_tiny, bundle, guard=mode, mmproj=guarded_tiny.projector) as session:
        watched = ask(session, "What is this?", images=[picture])
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        unguarded = ask(session, "What is this?", images=[picture])
    assert not watched.prefill.vector_active
    assert watched.text == unguarded.text


def embed(tiny: GuardedTiny, items: list[PromptItem]) -> np.ndarray:
    """The input embeddings of a prompt, float32 (n_tokens, n_embd)."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(tiny.model).tensors}
    table = np.array(tensors["token_embd.weight"].data).reshape(-1, tiny.info.n_embd)
    return np.concatenate(
        [
            table[list(item.token_ids)] if isinstance(item, TokenRun) else item.embeddings
            for item in items
        ]
    )


def test_only_the_last_token_of_the_prompt_is_evaluated_with_the_vector_on(
    guarded_tiny: GuardedTiny, picture: Path
):
    folder = guarded_tiny.bundle(WAVERING, has_vector=True)
    settings = guarded_tiny.settings(folder, mmproj=guarded_tiny.projector)
    runtime = open_runtime(settings)
    with Session(runtime, settings) as session:
        # Of these words alone the score is lower, and does not count.
        prompt_score = ask(session, "What do you see?", images=[picture]).prefill.prompt_score
        question = type(session.conversation)(session.conversation.messages[:1])
        image = load_image(picture)
        items = prompt_items(
            question,
            template=runtime.template,
            model=runtime.model,
            projector=runtime.projector,
            media={image.sha256: image},
        )
        embeddings = embed(guarded_tiny, items)
    with load_bundle(folder, guarded_tiny.info, device="cpu") as bundle:
        vector = bundle.vector_for("image")
    assert vector is not None
    model = NumpyLlama(guarded_tiny.model)
    logits = {}
    for steered_from in (0, len(embeddings) - 1, len(embeddings)):
        states = model.forward_embeddings(
            embeddings, vector.directions, steered_from=steered_from
        ).block_outputs[list(PROBE_LAYERS), -1]
        logits[steered_from] = float(guarded_tiny.logits(states.reshape(1, -1))[0])
    held_out = logits.pop(len(embeddings) - 1)
    assert logit(prompt_score) == pytest.approx(held_out, abs=LOGIT_TOLERANCE)
    for other in logits.values():  # all of the prompt steered, and none of it
        assert abs(other - held_out) > 5 * LOGIT_TOLERANCE


def test_a_picture_alone_is_a_question(guarded_tiny: GuardedTiny, picture: Path):
    bundle = guarded_tiny.bundle(QUIET, has_vector=True)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        assert ask(session, "", images=[picture]).prefill.n_media_tokens == 4


def test_two_pictures_stand_in_their_order(
    guarded_tiny: GuardedTiny, picture: Path, tmp_path: Path
):
    other = tmp_path / "b.png"
    Image.new("RGB", (56, 56), "navy").save(other)
    bundle = guarded_tiny.bundle(WAVERING)
    answers = []
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        for images in ([picture, other], [other, picture]):
            session.reset()
            turn = ask(session, "Compare.", images=images)
            answers.append(turn.prefill.prompt_score)
            assert turn.prefill.n_media_tokens == 8
            media = session.conversation.messages[0].media
            assert [item.sha256 for item in media] == [load_image(p).sha256 for p in images]
    assert answers[0] != answers[1]


def test_a_model_without_its_projector_says_what_it_lacks(guarded_tiny: GuardedTiny, picture: Path):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        with pytest.raises(MediaError, match="--mmproj"):
            next(session.ask("What is this?", images=[picture]))
        with pytest.raises(MediaError, match="--mmproj"):
            next(session.ask("What is this?", sounds=[picture]))
        assert ask(session, "Hello there").text


def test_a_projector_that_only_sees_is_not_given_sound(guarded_tiny: GuardedTiny, picture: Path):
    bundle = guarded_tiny.bundle(QUIET)
    with (
        opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session,
        pytest.raises(MediaError, match=r"cannot (hear|take sound)"),
    ):
        next(session.ask("What is this?", sounds=[picture]))


def test_a_picture_that_cannot_be_used_leaves_the_conversation_as_it_was(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    (tmp_path / "note.png").write_text("not a picture")
    bundle = guarded_tiny.bundle(QUIET)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        ask(session, "Hello there")
        with pytest.raises(InputError, match=r"note\.png"):
            next(session.ask("What is this?", images=[tmp_path / "note.png"]))
        assert len(session.conversation) == 2
        assert ask(session, "And then?").prefill.n_reused_tokens > 0
