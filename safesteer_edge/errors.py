"""The one tree of errors that the package raises on purpose.

Each message is one line that says what failed, the value, what was expected and what to do
next. Exceptions know nothing of exit codes: the command line maps them (`cli/exit_codes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SafeSteerError(Exception):
    """Something that we can explain went wrong."""


@contextmanager
def os_errors_as(kind: type[SafeSteerError], problem: str, remedy: str) -> Iterator[None]:
    """Turn what the system refuses into one line of ours: problem, the system's reason, remedy."""
    try:
        yield
    except OSError as error:
        raise kind(f"{problem}: {error.strerror or error}; {remedy}") from error


class InputError(SafeSteerError):
    """The user's input (a file, an option, a prompt) cannot be used as it is."""


class ModelFileError(InputError):
    """A GGUF model or projector file is missing, damaged, hostile or of the wrong kind."""


class TemplateError(InputError):
    """A chat template is missing, breaks a limit, or fails on this conversation."""


class MediaError(InputError):
    """An image or audio file cannot be used."""


class PromptTooLongError(InputError):
    """The conversation does not fit into the context."""


class ProbeFileError(InputError):
    """A probe.onnx is missing, damaged, hostile or of the wrong shape."""


class VectorFileError(InputError):
    """A control-vector GGUF is missing, damaged, or not one."""


class BundleError(InputError):
    """A guard bundle is missing, damaged, or not made for this model."""


class NoBundleError(BundleError):
    """No guard bundle is known for a model; one can be made."""


class BundleChangedError(BundleError):
    """A restarted engine found another guard than the session began with: the session is over."""


class SettingsError(InputError):
    """An option or setting has a value, or a name, that is not allowed."""


class ChatFileError(InputError):
    """A stored chat is missing, damaged, in use elsewhere, or of a newer version."""


class ChatStoreError(SafeSteerError):
    """A chat cannot be saved: the disk is full, or the folder not writable."""


class CacheError(SafeSteerError):
    """What was kept for the next run cannot be kept, or cannot be read."""


class RequestDataError(InputError):
    """A file of requests (JSONL) is missing or not in the documented form."""


class HubError(InputError):
    """A model hub lacks a file, does not give it to us, or says something false about it."""


class DownloadError(SafeSteerError):
    """A download was cut or the hub cannot be reached; what was downloaded is kept."""


class EngineError(SafeSteerError):
    """llama.cpp refused or failed a call that should have worked."""


class EngineDiedError(EngineError):
    """The engine's own process died (a crash in native code, no memory): the answer ends there."""


class GuardError(SafeSteerError):
    """The guard cannot judge (a non-finite score, a failed provider): the turn ends closed."""


class ProbeShapeError(GuardError):
    """Hidden states do not have the width that the probe was made for."""


def kinds_by_name() -> dict[str, type[SafeSteerError]]:
    """The errors of this file, by their names: those that may cross a pipe."""
    return {
        name: kind
        for name, kind in globals().items()
        if isinstance(kind, type) and issubclass(kind, SafeSteerError)
    }
