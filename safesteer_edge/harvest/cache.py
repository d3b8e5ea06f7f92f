"""Harvested states on disk: one file for each request and carrier, written whole or not at all.

A run that was killed finds every file of before: at most the request it was at is lost. Files live
in the user's cache folder under the hash of all that decides their content, up to a number of
bytes; the ones used longest ago go first.

A file: magic, length of its JSON header, header, then for each answer float16 (layers, rows,
n_embd): all layers of the message's mean, at the prompt's last position and the first 16 of the
answer, then the layers that a probe may read at the later ones. A slice per layer is what reading
one layer costs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import CacheError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.user_folders import user_cache_folder
from safesteer_edge.harvest.answers import HarvestedAnswer, HarvestPlan, label_of
from safesteer_edge.harvest.carriers import Carrier
from safesteer_edge.library.memory_plan import in_mib
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.settings import SessionSettings

DEFAULT_LIMIT_BYTES: Final = 8 << 30
N_EARLY_STATES: Final = 17  # the prompt's last position, and answer positions 1 to 16
N_EARLY_ROWS: Final = 1 + N_EARLY_STATES  # in a file, where the message's mean comes first
_MAGIC: Final = b"SSHARV2\n"
_SUFFIX: Final = ".states"
_MAX_HEADER_BYTES: Final = 16 << 20
_SPARE_BYTES: Final = 64 << 20  # left free on the disk, for the bundle and everyone else
_STALE_S: Final = 3600.0  # a temporary file of this age belongs to no living run


@dataclass(frozen=True, slots=True)
class StateShape:
    """layers: ascending, harvested at early rows. tail_layers: those of them kept at later rows."""

    layers: tuple[int, ...]
    tail_layers: tuple[int, ...]
    n_embd: int

    def n_bytes(self, n_rows: int) -> int:
        """Of one answer's states; n_rows: its tokens and two for the prompt."""
        n_early = min(n_rows, N_EARLY_ROWS)
        n_late = n_rows - n_early
        return 2 * self.n_embd * (n_early * len(self.layers) + n_late * len(self.tail_layers))


class HarvestCache:
    """The folder of harvested states."""

    def __init__(
        self, folder: Path | None = None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> None:
        """folder: None is the user's cache folder. Raises SettingsError if it cannot be made."""
        self.folder = folder or user_cache_folder(create=True) / "harvest"
        self.limit_bytes = limit_bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"cannot make the folder {str(self.folder)!r}: {error.strerror or error}; make "
                "its parent writable"
            ) from error

    def has(self, key: str) -> bool:
        """Tell whether a request's answers are there."""
        return self._path(key).is_file()

    def make_room(self, n_new_bytes: int, keep: Collection[str]) -> None:
        """Delete what is older until so many bytes fit below the limit, and check the disk.

        keep: keys of this run, which stay. Raises SettingsError if the disk has no room.
        """
        self._delete_old(n_new_bytes, set(keep))
        free = shutil.disk_usage(self.folder).free
        if n_new_bytes + _SPARE_BYTES > free:
            raise SettingsError(
                f"harvesting writes {in_mib(n_new_bytes)} to {str(self.folder)!r}, and "
                f"{in_mib(free)} are free on that disk; free some, or move the cache "
                "(XDG_CACHE_HOME on Linux)"
            )

    def put(self, key: str, answers: Sequence[HarvestedAnswer], shape: StateShape) -> None:
        """Keep the answers to one request; their states are those of all of `shape.layers`.

        What is there stays: a worker whose parent was killed ends its batch beside the next run,
        which may have read its own. Raises CacheError where the disk is full or fails.
        """
        if self.has(key):
            return
        blocks = [_blocks(answer, shape) for answer in answers]
        header = {
            "n_embd": shape.n_embd,
            "layers": shape.layers,
            "tail_layers": shape.tail_layers,
            "answers": [
                {
                    "kind": answer.kind,
                    "text": answer.text,
                    "token_ids": answer.token_ids,
                    "crc32": [[zlib.crc32(rows) for rows in block] for block in pair],
                }
                for answer, pair in zip(answers, blocks, strict=True)
            ],
        }
        encoded = json.dumps(header, separators=(",", ":")).encode()
        try:
            with atomic_write(self._path(key)) as file:
                file.write(_MAGIC + len(encoded).to_bytes(4, "little") + encoded)
                for block in (block for pair in blocks for block in pair):
                    file.write(block.tobytes())
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise CacheError(
                f"cannot keep states in {str(self.folder)!r}: {error.strerror or error}; "
                + ("free some space" if full else "check that disk")
                + " and run the same command again to continue"
            ) from error

    def get(
        self,
        key: str,
        request: Request,
        carrier: Carrier,
        layers: Sequence[int],
        *,
        n_rows: int | None = None,
    ) -> list[HarvestedAnswer]:
        """The answers to one request with the states of these layers, joined in this order.

        Where a layer is not kept at later rows, all states end at the last early row. n_rows: at
        most so many. Raises CacheError if the file is missing or damaged.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file:
                answers = _read_answers(file, request, carrier, layers, n_rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"cannot use harvested states {str(path)!r}: {error}; delete that file and run "
                "the same command again"
            ) from error
        with contextlib.suppress(OSError):  # read-only: then nobody deletes from it either
            os.utime(path)
        return answers

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _delete_old(self, n_new_bytes: int, keep: set[str]) -> None:
        found: list[tuple[float, int, Path]] = []
        total = n_new_bytes
        for path in self.folder.iterdir():
            try:
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime > _STALE_S:
                    path.unlink()
                elif path.suffix == _SUFFIX:
                    total += status.st_size
                    found.append((status.st_mtime, status.st_size, path))
            except FileNotFoundError:  # another run's
                continue
        for _, size_bytes, path in sorted(found):
            if total <= self.limit_bytes:
                break
            if path.stem not in keep:
                path.unlink(missing_ok=True)
                total -= size_bytes


def _blocks(answer: HarvestedAnswer, shape: StateShape) -> tuple[NDArray[Any], NDArray[Any]]:
    """Early and late states, float16 (layers, rows, n_embd)."""
    rows = np.concatenate([answer.message[np.newaxis], answer.states])
    by_layer = rows.reshape(len(rows), len(shape.layers), shape.n_embd)
    by_layer = by_layer.transpose(1, 0, 2).astype("<f2")
    slots = [shape.layers.index(layer) for layer in shape.tail_layers]
    early = np.ascontiguousarray(by_layer[:, :N_EARLY_ROWS])
    return early, np.ascontiguousarray(by_layer[slots, N_EARLY_ROWS:])


def _read_answers(
    file: IO[bytes],
    request: Request,
    carrier: Carrier,
    layers: Sequence[int],
    n_rows: int | None,
) -> list[HarvestedAnswer]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no file of harvested states")
    n_bytes = int.from_bytes(file.read(4), "little")
    if n_bytes > _MAX_HEADER_BYTES:
        raise ValueError("its header is too long")
    header: dict[str, Any] = json.loads(file.read(n_bytes))
    shape = StateShape(tuple(header["layers"]), tuple(header["tail_layers"]), header["n_embd"])
    start = file.tell()
    answers: list[HarvestedAnswer] = []
    for entry in header["answers"]:
        n_all_rows = len(entry["token_ids"]) + 2
        n_wanted = n_all_rows if n_rows is None else min(n_all_rows, 1 + n_rows)
        rows = _read_states(file, start, entry["crc32"], shape, layers, n_all_rows, n_wanted)
        answers.append(
            HarvestedAnswer(
                request=request,
                kind=entry["kind"],
                label=label_of(request, entry["kind"], entry["text"]),
                text=entry["text"],
                token_ids=tuple(entry["token_ids"]),
                states=rows[1:],  # of one array with the message: most of a calibration's memory
                message=rows[0],
                carrier=carrier,
            )
        )
        start += shape.n_bytes(n_all_rows)
    return answers


def _read_states(
    file: IO[bytes],
    start: int,
    checksums: Sequence[Sequence[int]],
    shape: StateShape,
    layers: Sequence[int],
    n_rows: int,
    n_wanted: int,
) -> NDArray[np.float16]:
    """Of one answer's n_rows at most n_wanted, float16 (rows, layers · n_embd)."""
    n_early = min(n_rows, N_EARLY_ROWS)
    wide = 2 * shape.n_embd
    late_start = start + wide * n_early * len(shape.layers)
    has_late = min(n_rows, n_wanted) > n_early and all(
        layer in shape.tail_layers for layer in layers
    )
    parts: list[NDArray[np.float16]] = []
    for layer in layers:
        slot = shape.layers.index(layer)
        rows = _read_rows(file, start + slot * wide * n_early, n_early, wide, checksums[0][slot])
        if has_late:
            slot = shape.tail_layers.index(layer)
            n_late = n_rows - n_early
            at = late_start + slot * wide * n_late
            rows = np.concatenate([rows, _read_rows(file, at, n_late, wide, checksums[1][slot])])
        parts.append(rows)
    return np.concatenate([rows[:n_wanted] for rows in parts], axis=1)


def _read_rows(
    file: IO[bytes], at: int, n_rows: int, wide: int, checksum: int
) -> NDArray[np.float16]:
    file.seek(at)
    data = file.read(n_rows * wide)
    if zlib.crc32(data) != checksum:
        raise ValueError("its checksum is wrong")
    return np.frombuffer(data, dtype="<f2").reshape(n_rows, wide // 2)


# -- what a harvest is given -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HarvestSettings:
    """session: with the projector that is to be used; its guard is left off. plan: lengths.

    tail_layers: layers that a probe may read at late positions. hears: recordings are played.
    cache: None is the user's. n_workers: processes at once, on the CPU.
    """

    session: SessionSettings
    plan: HarvestPlan
    tail_layers: tuple[int, ...]
    hears: bool = False
    cache: Path | None = None
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    n_workers: int = 1
