"""Pulling from a hub that refuses, breaks off, or says what is not so."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from safesteer_edge.errors import DownloadError, HubError, InputError, SafeSteerError
from safesteer_edge.library import hub
from safesteer_edge.library.index import library_folder, read_index
from tests.library.conftest import MODEL, PROJECTOR, REPOSITORY, Pull, Told
from tests.library.hub_server import Answer, Hub


def partial_files() -> list[Path]:
    return list((library_folder() / ".partial").glob("*.part"))


def visible_files() -> list[Path]:
    return [path for path in library_folder().rglob("*.gguf") if ".partial" not in path.parts]


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "answer", "kind", "problem"),
    [
        ("/api/models", Answer(401, {}), HubError, "status 401: it is private, or not there"),
        ("/api/models", Answer(403, {"X-Error-Code": "GatedRepo"}), HubError, "accept its licence"),
        ("/api/models", Answer(404, {"X-Error-Code": "RepoNotFound"}), HubError, "status 404"),
        ("/resolve/", Answer(403, {"X-Error-Code": "GatedRepo"}), HubError, "HF_TOKEN"),
        ("/resolve/", Answer(404, {"X-Error-Code": "EntryNotFound"}), HubError, "status 404"),
        ("/api/models", Answer(500, {}), DownloadError, "status 500"),
        ("/api/models", Answer(200, {}), HubError, "cannot understand the hub's answer"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    stocked: Hub, pulled: Pull, part: str, answer: Answer, kind: type[SafeSteerError], problem: str
):
    stocked.answers[part] = answer
    with pytest.raises(kind, match=problem) as caught:
        pulled()
    assert "\n" not in str(caught.value)
    assert read_index().models == ()


def test_a_token_that_is_not_valid_is_told_apart_from_none(
    stocked: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    stocked.answers["/api/models"] = Answer(401, {})
    with pytest.raises(HubError, match="the token is not valid"):
        pulled()


@pytest.mark.parametrize("where", ["/api/models", "/resolve/", None])
def test_a_rate_limit_is_waited_for_as_the_hub_asks(
    stocked: Hub, pulled: Pull, told: Told, where: str | None
):
    part = where or f"/{stocked_digest(stocked)}"
    stocked.answers[part] = Answer(429, {"Retry-After": "0"}, n_times=1)
    pulled()
    assert "the hub answers with status 429: waiting 0 s" in told.lines


@pytest.mark.parametrize("where", ["/api/models", "/resolve/", None])
def test_a_rate_limit_of_hours_is_not_waited_for(stocked: Hub, pulled: Pull, where: str | None):
    part = where or f"/{stocked_digest(stocked)}"
    stocked.answers[part] = Answer(429, {"Retry-After": "86400"})
    with pytest.raises(DownloadError, match="accepts no more requests for now"):
        pulled()


def stocked_digest(hub: Hub, name: str = MODEL) -> str:
    return hashlib.sha256(hub.files[REPOSITORY][name]).hexdigest()


def test_a_hub_that_is_not_there_says_so(stocked: Hub, pulled: Pull, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="check the connection and HF_ENDPOINT"):
        pulled()


# -- broken transfers -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "RETRY_WAIT_S", 0.01)


def test_a_line_that_breaks_at_once_again_and_again_is_given_up(stocked: Hub, pulled: Pull):
    stocked.cut_after, stocked.n_cuts = 0, 1000
    with pytest.raises(DownloadError, match="again and again"):
        pulled(with_projector=False)
    assert stocked.count("GET", "/resolve/") == 6


@pytest.mark.parametrize("resets", [False, True])
def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
    stocked: Hub, pulled: Pull, told: Told, tiny_llama_path: Path, resets: bool
):
    stocked.cut_after, stocked.n_cuts = 50_000, 14
    stocked.n_arrived = (lambda: told.advanced) if resets else None
    record = pulled(with_projector=False)
    assert record.model.path.read_bytes() == tiny_llama_path.read_bytes()
    assert told.advanced == told.expected
    ranges = [wanted for _, _, wanted in stocked.requests if wanted]
    assert ranges, "it did not ask for the rest"


def test_a_hub_without_ranges_sends_the_whole_again(
    stocked: Hub, pulled: Pull, told: Told, tiny_llama_path: Path
):
    stocked.cut_after, stocked.n_cuts, stocked.ignores_ranges = 300_000, 1, True
    record = pulled(with_projector=False)
    assert record.model.path.read_bytes() == tiny_llama_path.read_bytes()
    assert told.advanced == told.expected


def test_what_came_of_a_failed_pull_is_kept_for_the_next(
    stocked: Hub, pulled: Pull, tiny_llama_path: Path
):
    half = tiny_llama_path.read_bytes()[:400_000]
    folder = library_folder(create=True) / ".partial"
    folder.mkdir()
    (folder / f"{stocked_digest(stocked)}.part").write_bytes(half)
    record = pulled(with_projector=False)
    assert record.model.path.read_bytes() == tiny_llama_path.read_bytes()
    assert stocked.n_bytes_sent == record.model.size_bytes - len(half)
    assert partial_files() == []


def test_a_part_that_was_spoilt_is_found_by_its_hash_and_fetched_anew(
    stocked: Hub, pulled: Pull, tiny_llama_path: Path
):
    folder = library_folder(create=True) / ".partial"
    folder.mkdir()
    part = folder / f"{stocked_digest(stocked)}.part"
    part.write_bytes(bytes(400_000))
    with pytest.raises(HubError, match="does not have the hash"):
        pulled(with_projector=False)
    assert not part.exists()
    part.write_bytes(bytes(4_000_000))  # longer than the whole
    assert pulled(with_projector=False).model.path.read_bytes() == tiny_llama_path.read_bytes()


def test_an_error_of_one_file_stops_the_other(stocked: Hub, pulled: Pull):
    stocked.chunk_wait_s = 0.5
    stocked.answers[f"/{stocked_digest(stocked, PROJECTOR)}"] = Answer(403, {})
    with pytest.raises(HubError, match="status 403"):
        pulled()
    assert stocked.n_bytes_sent < len(stocked.files[REPOSITORY][MODEL]) // 2
    assert read_index().models == ()
    assert visible_files() == []


def test_too_little_room_is_found_before_anything_is_asked_for(
    stocked: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1 << 20)
    )
    with pytest.raises(DownloadError, match=r"has room for 1 MiB"):
        pulled()
    assert stocked.n_bytes_sent == 0


def test_a_disk_that_becomes_full_is_one_line_and_what_came_is_kept(
    stocked: Hub, pulled: Pull, tiny_llama_path: Path
):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # no file may be larger
    try:
        with pytest.raises(DownloadError, match=r"cannot write to .*make room"):
            pulled(with_projector=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < partial_files()[0].stat().st_size <= 300_000
    assert pulled(with_projector=False).model.path.read_bytes() == tiny_llama_path.read_bytes()


# -- lies -----------------------------------------------------------------------------------------


@pytest.fixture
def before(stocked: Hub, pulled: Pull, tiny_mamba_path: Path) -> bytes:
    """A model that is installed, of which the hub then has a new version."""
    record = pulled(with_projector=False)
    stocked.put(REPOSITORY, MODEL, tiny_mamba_path.read_bytes())
    return record.model.path.read_bytes()


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        ({"listed_size": 1000}, "1000 bytes in its listing"),
        ({"linked_size": 1000}, "1000 at the file itself"),
        ({"linked_size": 1000, "listed_size": 1000}, "1000 bytes, and sends more"),
        ({"linked_size": 10**7, "listed_size": 10**7}, "10000000 bytes, and sends"),
        ({"linked_size": 10**15, "listed_size": 10**15}, "cannot be downloaded so"),
        ({"linked_etag": "0" * 64}, "in its listing, 000000000000"),
        ({"extra": 5}, "and sends more"),
        ({"missing": 5}, "and sends"),
        ({"is_corrupt": True}, "does not have the hash"),
    ],
)
def test_a_hub_that_lies_replaces_nothing(
    stocked: Hub, pulled: Pull, before: bytes, lie: dict[str, object], problem: str
):
    for name, value in lie.items():
        setattr(stocked, name, value)
    with pytest.raises(InputError, match=problem):
        pulled(with_projector=False)
    (record,) = read_index().models
    assert record.model.path.read_bytes() == before
    assert len(visible_files()) == 1
    assert partial_files() == [] or partial_files()[0].stat().st_size == 0


def test_after_a_lie_the_truth_is_installed(stocked: Hub, pulled: Pull, before: bytes):
    stocked.is_corrupt = True
    with pytest.raises(HubError):
        pulled(with_projector=False)
    stocked.is_corrupt = False
    record = pulled(with_projector=False)
    assert record.model.path.read_bytes() == stocked.files[REPOSITORY][MODEL] != before


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (MODEL, b"GGUF" + bytes(100), f"{REPOSITORY}/{MODEL}"),
        (MODEL, b"PK\x03\x04" + bytes(100), "ZIP archive"),
        (PROJECTOR, b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_a_file_that_the_pre_check_refuses_is_never_installed(
    stocked: Hub, pulled: Pull, name: str, content: bytes, problem: str
):
    stocked.put(REPOSITORY, name, content)
    with pytest.raises(HubError, match=problem) as caught:
        pulled()
    assert ".part" not in str(caught.value)
    assert (read_index().models, visible_files(), partial_files()) == ((), [], [])


def test_a_projector_for_another_model_is_never_installed(
    stocked: Hub, pulled: Pull, tmp_path: Path
):
    from tests.tiny_models import write_tiny_llama

    wider = write_tiny_llama(tmp_path / "wider.gguf", n_embd=128)
    stocked.put(REPOSITORY, MODEL, wider.read_bytes())
    with pytest.raises(HubError, match=r"width 64, and .* has width 128"):
        pulled()
    assert (read_index().models, visible_files()) == ((), [])
