"""`answer()`: one call for one answer, pictures and messages as programs have them."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from PIL import Image

from safesteer_edge import open_async_session, open_isolated_session, open_session
from safesteer_edge.errors import InputError, MediaError, SettingsError
from safesteer_edge.guard.events import Event
from safesteer_edge.session.protocol import ChatMessage
from tests.guarded_tiny import ALARMED, QUIET, REFUSAL_TEXT, GuardedTiny
from tests.session.turns import ask, opened


def test_an_answer_is_what_the_events_tell(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        turn = ask(session, "Hello there")
        session.reset()
        answer = session.answer("Hello there")
        assert str(answer) == answer.text == turn.text
        assert answer.risk == turn.ended.guard.risk
        assert answer.usage.completion_tokens == turn.ended.usage.completion_tokens
        assert answer.prompt_score == turn.prefill.prompt_score
        assert not answer.refused
        assert session.messages[-1].text == answer.text


def test_a_refused_answer_says_so(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        answer = session.answer("Hello there")
        assert answer.refused
        assert answer.refusal is not None
        assert answer.text == REFUSAL_TEXT


def test_a_model_by_its_path_with_settings_by_name(guarded_tiny: GuardedTiny):
    with open_session(
        guarded_tiny.model, guard="off", temperature=0, top_k=8, n_ctx=512, max_tokens=12
    ) as session:
        text = session.answer("Hello there").text
    with opened(guarded_tiny, None) as session:
        assert session.answer("Hello there").text == text
    bundle = str(guarded_tiny.bundle(QUIET))
    with open_session(str(guarded_tiny.model), bundle=bundle, n_ctx=512, top_k=8) as session:
        assert session.info.bundle == "tiny-30"


def test_an_unknown_setting_names_the_nearest(guarded_tiny: GuardedTiny):
    with pytest.raises(SettingsError, match="no setting 'temprature'; did you mean 'temperature'"):
        open_session(guarded_tiny.model, temprature=0)


def test_pictures_come_as_paths_bytes_and_pil_images(guarded_tiny: GuardedTiny, picture: Path):
    image = Image.open(picture)
    forms = [picture, str(picture), picture.read_bytes(), image]
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        answers = []
        for form in forms:
            session.reset()
            answers.append(session.answer("What is it?", images=[form]))
        assert len({answer.text for answer in answers}) == 1
        assert [answer.media[0].n_tokens for answer in answers] == [4] * len(forms)
        assert [answer.media[0].from_cache for answer in answers] == [False, True, True, True]
        kept = [path for message in session.messages for path in message.images]
        assert all(path.exists() for path in kept)
    assert not kept[0].exists()  # the folder of what was not a file goes with the session


def test_a_large_pil_image_is_within_the_limit_of_files(guarded_tiny: GuardedTiny):
    noise = Image.effect_noise((3200, 3200), 100).convert("RGB").resize((3200, 3200))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG", compress_level=1)
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        assert session.answer("What is it?", images=[noise]).media[0].original_width == 3200


@pytest.mark.parametrize("bad", [7, None, bytearray(b"x")])
def test_what_is_no_picture_is_refused(guarded_tiny: GuardedTiny, bad: object):
    with (
        opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session,
        pytest.raises(MediaError, match="cannot take an image of type"),
    ):
        session.answer("What is it?", images=[bad])


def test_damaged_bytes_are_refused_as_a_file_would_be(guarded_tiny: GuardedTiny):
    with (
        opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session,
        pytest.raises(MediaError, match="image"),
    ):
        session.answer("What is it?", images=[b"no picture"])


def test_a_list_of_messages_takes_the_place_of_the_conversation(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        session.answer("Something else")
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "And now?"},
        ]
        answer = session.answer(messages)
        assert [message.text for message in session.messages] == [
            *(message["content"] for message in messages),
            answer.text,
        ]
        again = session.answer(
            [
                ChatMessage(m["role"], m["content"])  # pyright: ignore[reportArgumentType]  # one of them
                for m in messages
            ]
        )
        assert again.text == answer.text
        assert session.answer([{"role": "user", "content": "Alone"}]).text
        assert len(session.messages) == 2


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "Hi."}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": "x", "name": "y"}],
        [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}],
    ],
)
def test_messages_of_another_shape_are_refused(guarded_tiny: GuardedTiny, messages: list):
    with opened(guarded_tiny, None) as session:
        session.answer("Hello")
        before = session.messages
        with pytest.raises(InputError):
            session.answer(messages)
        assert session.messages == before


def test_an_isolated_session_answers_the_same(guarded_tiny: GuardedTiny, picture: Path):
    settings = guarded_tiny.settings(None, mmproj=guarded_tiny.projector)
    data = picture.read_bytes()
    with open_session(settings) as here, open_isolated_session(settings) as apart:
        for session in (here, apart):
            session.answer("Hello")
        assert (
            here.answer("What is it?", images=[data]).text
            == apart.answer("What is it?", images=[data]).text
        )


def test_the_async_twin_answers_the_same_and_streams(guarded_tiny: GuardedTiny):
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET))

    async def talk() -> tuple[str, list[Event]]:
        async with open_async_session(settings) as session:
            events = [event async for event in session.ask("Hello there")]
            await session.reset()
            answer = await session.answer("Hello there")
            assert session.messages[-1].text == answer.text
            return str(answer), events

    text, events = asyncio.run(talk())
    with open_session(settings) as session:
        told = list(session.ask("Hello there"))
    assert [type(event) for event in events] == [type(event) for event in told]
    assert text == told[-1].text  # pyright: ignore[reportAttributeAccessIssue]  # TurnEnded


def test_an_async_answer_that_nobody_waits_for_is_stopped(guarded_tiny: GuardedTiny):
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET), max_tokens=400)

    async def leave() -> int:
        async with open_async_session(settings) as session:
            async for event in session.ask("Hello there"):
                if type(event).__name__ == "Step":
                    break
            await session.reset()
            return len((await session.answer("Hello there")).text)

    assert asyncio.run(leave()) > 0


def test_settings_and_errors_are_those_of_the_twin(guarded_tiny: GuardedTiny):
    async def fail() -> None:
        async with open_async_session(guarded_tiny.model, guard="off", isolated=True) as session:
            with pytest.raises(InputError, match="empty"):
                await session.answer(" ")
        with pytest.raises(SettingsError, match="no setting 'gard'"):
            async with open_async_session(guarded_tiny.model, gard="off"):
                pass

    asyncio.run(fail())
