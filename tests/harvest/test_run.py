"""A harvest that goes on where it was, and states that come back from the disk as they were."""

from __future__ import annotations

import errno
import os
import shutil
import wave
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import CacheError, EngineError, MediaError, SettingsError
from safesteer_edge.harvest import cache
from safesteer_edge.harvest.answers import HarvestPlan, answers_to
from safesteer_edge.harvest.cache import HarvestCache, HarvestSettings, StateShape
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS, written_words
from safesteer_edge.harvest.run import Harvest, harvest, run_side_by_side
from safesteer_edge.harvest.units import answered_ids, planned_requests
from safesteer_edge.requests.requests import (
    LABELS,
    TRANSLATED,
    Request,
    load_requests,
    load_translated,
)
from safesteer_edge.session.runtime import open_runtime
from tests.guarded_tiny import GuardedTiny
from tests.made_up_answers import made_up_answer, made_up_request
from tests.tiny_models.hearing_projector import write_tiny_hearing_projector

PLAN = HarvestPlan(20, 6, 5, 4, n_openings=1)
REQUESTS: tuple[Request, ...] = tuple(
    made_up_request(label, number) for label in LABELS for number in range(2)
)


def settings_for(tiny: GuardedTiny, cache: Path, *, sees: bool = False) -> HarvestSettings:
    session = tiny.settings(None, mmproj=tiny.projector if sees else None)
    return HarvestSettings(session, PLAN, tail_layers=(1, 2), cache=cache)


def run(settings: HarvestSettings, requests=REQUESTS) -> tuple[Harvest, list[int]]:
    """The harvest, and how much of it was done whenever it said so."""
    told: list[int] = []
    return harvest(settings, requests, lambda _what, n_done, _n: told.append(n_done)), told


def test_states_come_back_as_they_were_harvested(guarded_tiny: GuardedTiny, tmp_path: Path):
    harvested, _ = run(settings_for(guarded_tiny, tmp_path))
    back = {(a.request.id, a.kind): a for a in harvested.answers((2, 1))}
    early = {(a.request.id, a.kind): a for a in harvested.answers((0,))}
    runtime = open_runtime(guarded_tiny.settings(None), layers=(0, 1, 2))
    try:
        answers = [answer for each in REQUESTS for answer in answers_to(each, runtime, PLAN)]
    finally:
        runtime.close()
    assert back.keys() == {(a.request.id, a.kind) for a in answers}
    for answer in answers:
        found = back[answer.request.id, answer.kind]
        assert (found.text, found.token_ids, found.label, found.carrier) == (
            answer.text,
            answer.token_ids,
            answer.label,
            "text",
        )
        by_layer = np.split(answer.states, 3, axis=1)
        np.testing.assert_array_equal(found.states, np.hstack([by_layer[2], by_layer[1]]))
        # Layers that no probe reads are kept at early positions alone.
        first = early[answer.request.id, answer.kind].states
        np.testing.assert_array_equal(first, by_layer[0][:17])


def test_a_second_run_asks_the_model_for_nothing(guarded_tiny: GuardedTiny, tmp_path: Path):
    settings = settings_for(guarded_tiny, tmp_path)
    _, told = run(settings)
    assert told == list(range(len(REQUESTS) + 1))
    assert run(settings)[1] == [len(REQUESTS)]


def test_processes_side_by_side_harvest_the_same(guarded_tiny: GuardedTiny, tmp_path: Path):
    alone, _ = run(settings_for(guarded_tiny, tmp_path / "alone"))
    several = replace(settings_for(guarded_tiny, tmp_path / "several"), n_workers=3)
    together, told = run(several)
    assert told == list(range(len(REQUESTS) + 1))
    assert {unit.key for unit in together.units} == {unit.key for unit in alone.units}
    for ours, theirs in zip(alone.answers((0, 1)), together.answers((0, 1)), strict=True):
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_array_equal(ours.states, theirs.states)


def test_what_fails_in_a_process_is_told_in_this_one(guarded_tiny: GuardedTiny, tmp_path: Path):
    settings = replace(settings_for(guarded_tiny, tmp_path), n_workers=2)
    picture = tmp_path / "broken.png"
    picture.write_bytes(b"no picture")
    session = replace(settings.session, mmproj=guarded_tiny.projector)
    requests = (*REQUESTS[:2], replace(REQUESTS[2], image=picture))
    with pytest.raises(MediaError, match=r"broken\.png"):
        run(replace(settings, session=session), requests)


def _die(_: Sequence[int]) -> Iterator[None]:
    yield
    os._exit(9)


def test_a_process_that_dies_ends_the_harvest_with_one_line():
    done = run_side_by_side(_die, [1, 2], n_workers=1)
    assert next(done) is None
    with pytest.raises(EngineError, match=r"died \(exit code 9\); run the same command again"):
        next(done)


def test_one_missing_request_is_all_that_is_harvested_again(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    settings = settings_for(guarded_tiny, tmp_path)
    run(settings)
    next(tmp_path.iterdir()).unlink()
    assert run(settings)[1] == [len(REQUESTS) - 1, len(REQUESTS)]


def test_pictures_carry_requests_where_the_model_sees(guarded_tiny: GuardedTiny, tmp_path: Path):
    harvested, _ = run(settings_for(guarded_tiny, tmp_path, sees=True))
    carried = {(u.request.id, u.carrier) for u in harvested.units}
    drawn = {id for id, carrier in carried if carrier in DRAWN_CARRIERS}
    assert {request.id for request in REQUESTS if request.pair_id} <= drawn
    by_pair: dict[str, set[str]] = {}
    for unit in harvested.units:
        if unit.request.pair_id and unit.carrier in DRAWN_CARRIERS:
            by_pair.setdefault(unit.request.pair_id, set()).add(unit.carrier)
    assert all(len(carriers) == 1 for carriers in by_pair.values())
    # What was harvested as text is the same with and without a projector.
    assert run(settings_for(guarded_tiny, tmp_path))[1] == [len(REQUESTS)]


def test_recordings_are_played_where_they_are_asked_for(guarded_tiny: GuardedTiny, tmp_path: Path):
    hearing = write_tiny_hearing_projector(tmp_path / "hears.gguf")
    recording = tmp_path / "a.wav"
    with wave.open(str(recording), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.zeros(8_000, dtype="<i2").tobytes())
    session = guarded_tiny.settings(None, mmproj=hearing, n_ctx=1024)
    settings = HarvestSettings(session, PLAN, tail_layers=(1, 2), hears=True, cache=tmp_path / "c")
    request = replace(REQUESTS[0], audio=recording)
    harvested, _ = run(settings, [request])
    assert {unit.carrier for unit in harvested.units} == {"text", "speech"}
    spoken, written = (
        harvested.answers((1,), carriers=(carrier,), kinds=("own",))[0]
        for carrier in ("speech", "text")
    )
    assert not np.array_equal(spoken.states[0], written.states[0])
    silent, _ = run(replace(settings, hears=False), [request])
    assert {unit.carrier for unit in silent.units} == {"text"}


def test_another_plan_is_another_harvest(guarded_tiny: GuardedTiny, tmp_path: Path):
    settings = settings_for(guarded_tiny, tmp_path)
    run(settings, REQUESTS[:1])
    longer = replace(settings, plan=replace(PLAN, n_own_tokens=21))
    assert run(longer, REQUESTS[:1])[1] == [0, 1]


def test_a_full_disk_is_told_before_the_model_runs(
    guarded_tiny: GuardedTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(SettingsError, match="1 MiB are free"):
        run(settings_for(guarded_tiny, tmp_path))


def test_a_disk_that_fills_up_on_the_way_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = HarvestCache(tmp_path)
    answer = made_up_answer(np.zeros((3, 4)), made_up_request("ordinary", 1))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheError, match=r"No space left on device.* again to continue"):
        cache.put("key", [answer], StateShape((0,), (0,), 4))
    assert list(tmp_path.iterdir()) == []


def test_what_another_run_has_kept_already_stays(tmp_path: Path):
    cache, request = HarvestCache(tmp_path), made_up_request("ordinary", 1)
    for value in (1.0, 2.0):
        cache.put(
            "key", [made_up_answer(np.full((30, 4), value), request)], StateShape((0,), (), 4)
        )
    (found,) = cache.get("key", request, "text", (0,))
    assert np.unique(found.states).tolist() == [1.0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "no header"])
def test_a_damaged_file_is_told_by_name(tmp_path: Path, damage: str):
    cache = HarvestCache(tmp_path)
    request = made_up_request("ordinary", 1)
    cache.put("key", [made_up_answer(np.ones((30, 8)), request)], StateShape((0, 1), (1,), 4))
    path = tmp_path / "key.states"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-2:]
    elif damage == "flipped":
        data[-1] ^= 1
    else:
        del data[:1]
    path.write_bytes(data)
    with pytest.raises(CacheError, match=r"key\.states.*delete that file"):
        cache.get("key", request, "text", (1,))


def test_the_oldest_files_make_room_and_those_of_this_run_stay(tmp_path: Path):
    shape = StateShape((0,), (0,), 4)
    answer = made_up_answer(np.zeros((3, 4)), made_up_request("ordinary", 1))
    cache = HarvestCache(tmp_path)
    for key in ("a", "b", "c"):
        cache.put(key, [answer], shape)
    size = (tmp_path / "a.states").stat().st_size
    HarvestCache(tmp_path, limit_bytes=2 * size).make_room(0, keep=["a"])
    left = {path.stem for path in tmp_path.iterdir()}
    assert "a" in left and len(left) == 2


def test_states_beyond_the_limit_are_those_of_fewer_layers(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    settings = settings_for(guarded_tiny, tmp_path)
    harvested, _ = run(replace(settings, tail_layers=(2,), limit_bytes=100_000), REQUESTS)
    assert harvested.shape.layers == (0, 2)
    with pytest.raises(SettingsError, match="raise --cache-limit"):
        run(replace(settings, limit_bytes=1000))


def test_of_more_requests_than_are_answered_the_prompt_alone_is_read(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    """The same state as an answered one's, at the cost of a prefill."""
    settings = settings_for(guarded_tiny, tmp_path)
    whole, _ = run(settings)
    few, _ = run(replace(settings, plan=replace(PLAN, n_answered=1, n_answered_benign=1)))
    prompts = {a.request.id: a.states for a in few.answers((0, 1), kinds=("prompt",))}
    assert len(prompts) == len(LABELS)  # one of two of each label
    for answer in whole.answers((0, 1), kinds=("own",)):
        if answer.request.id in prompts:
            np.testing.assert_array_equal(prompts[answer.request.id], answer.states[:1])


def test_both_sides_of_a_pair_are_answered_or_neither():
    requests = [made_up_request(label, n) for label in LABELS for n in range(40)]
    plan = HarvestPlan(n_answered=10, n_answered_benign=15)
    answered = answered_ids(requests, plan)
    by_label = {
        label: {
            request.pair_id or request.id
            for request in requests
            if request.label == label and request.id in answered
        }
        for label in LABELS
    }
    n_by_label = {label: len(ids) for label, ids in by_label.items()}
    assert n_by_label == {"harmful": 10, "harmless": 10, "borderline": 15, "ordinary": 15}
    assert by_label["harmful"] == by_label["harmless"]
    assert answered_ids(requests[::-1], plan) == answered
    assert answered_ids(requests, HarvestPlan()) == {request.id for request in requests}


def test_requests_stand_in_words_beside_pictures_too(guarded_tiny: GuardedTiny, tmp_path: Path):
    harvested, _ = run(settings_for(guarded_tiny, tmp_path, sees=True))
    by_carrier = {
        carrier: {a.request.id: a.states[0] for a in harvested.answers((0, 1), carriers=(carrier,))}
        for carrier in ("text", "beside")
    }
    assert by_carrier["beside"].keys() == by_carrier["text"].keys()
    for request_id, state in by_carrier["beside"].items():
        assert not np.array_equal(state, by_carrier["text"][request_id])  # the picture is there
    assert {unit.carrier for unit in harvested.without_drawn().units} == {"text", "beside"}


def test_a_pair_is_read_among_the_same_words():
    requests = load_requests(splits=("train", "calibration"), labels=("harmful", "harmless"))
    around: dict[str | None, set[str]] = {}
    for request in requests:
        wrapped = written_words(request, "wrapped")
        if request.text in wrapped:  # else a title, or cut in two
            around.setdefault(request.pair_id, set()).add(wrapped.replace(request.text, ""))
    assert 0.5 < len(around) / (len(requests) / 2) < 0.8
    assert all(len(words) == 1 for words in around.values())
    assert len(set.union(*around.values())) > 25


def test_of_many_requests_some_are_read_among_other_words(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    requests = [made_up_request(label, n) for label in LABELS for n in range(200)]
    plan = replace(PLAN, n_answered=100, n_answered_benign=100)
    _, planned = planned_requests(
        replace(settings_for(guarded_tiny, tmp_path), plan=plan), requests
    )
    wrapped = [each for each in planned if each.carrier == "wrapped"]
    assert not any(each.is_answered for each in wrapped)
    answered = {each.request.id for each in planned if each.is_answered}
    n_again = sum(each.request.id in answered for each in wrapped)
    assert 0.15 < n_again / len(answered) < 0.35
    n_unanswered = len(requests) - len(answered)
    assert 0.4 < (len(wrapped) - n_again) / n_unanswered < 0.6
    assert len(planned) == len(requests) + n_again


def test_of_each_other_language_so_many_are_read_and_none_is_answered(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    requests = [made_up_request(label, n) for label in LABELS for n in range(20)]
    requests += load_translated(splits=("train", "calibration"))
    plan = replace(PLAN, n_read_translated=5)
    _, planned = planned_requests(
        replace(settings_for(guarded_tiny, tmp_path), plan=plan), requests
    )
    translated = [each for each in planned if each.request.is_translated]
    counts = Counter((each.request.language, each.request.label) for each in translated)
    assert counts == {(language, label): 5 for language in TRANSLATED for label in LABELS}
    assert not any(each.is_answered for each in translated)
    assert len({each.request.id for each in planned}) == 80 + sum(counts.values())
