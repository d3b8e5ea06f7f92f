"""What is written in a picture, read by character recognition: RapidOCR, on ONNX Runtime's CPU.

A request may stand in a picture so that nobody meets it in words (FigStep, arXiv 2311.05608). The
guard reads it there itself and scores what it read, whether or not the model reads well. Needs the
extra `picture-words`; everything is in its package, nothing is loaded from a network.
"""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError
from safesteer_edge.media.decoder import DecodedImage
from safesteer_edge.processes.native_libraries import import_onnxruntime

if TYPE_CHECKING:
    from rapidocr import RapidOCR


PACKAGE: Final = "rapidocr"
MAX_LETTERS: Final = 1000  # some 250 tokens, which the guard evaluates beside the prompt
_MIN_LETTERS: Final = 3  # in all: specks are taken for letters
_MIN_CONFIDENCE: Final = 0.5
_N_REMEMBERED: Final = 64  # pictures
_MAX_SIDE: Final = 1280  # pixels
# Its detector scales the short side to 736 pixels, however long the other gets then.
_MAX_ASPECT: Final = 2


class PictureReader:
    """Reads pictures, as the projector gets them. Not thread-safe.

    The first one takes a second and some 300 MiB, each more some 0.3 s, a page full of text some
    seconds. `safesteer-edge measure pictures` measures it.
    """

    def __init__(self, *, n_threads: int) -> None:
        self._n_threads = n_threads
        self._engine: RapidOCR | None = None
        self._read: OrderedDict[str, str] = OrderedDict()

    def words(self, image: DecodedImage) -> str:
        """The lines, from top to bottom, joined by spaces; empty: none. At most MAX_LETTERS long.

        Lines without a letter are left out: the numbers of an empty list ask for nothing, and what
        stands last weighs most in a score.
        Raises GuardError where it cannot be told.
        """
        if image.sha256 not in self._read:
            self._read[image.sha256] = self._recognised(image)
            if len(self._read) > _N_REMEMBERED:
                self._read.popitem(last=False)
        self._read.move_to_end(image.sha256)
        return self._read[image.sha256]

    def _recognised(self, image: DecodedImage) -> str:
        try:
            if self._engine is None:
                self._engine = _load_engine(self._n_threads)
            found = self._engine(_widened(image.pixels)[..., ::-1])  # BGR, as OpenCV has it
        except Exception as error:  # of three libraries: whatever it is, nothing was read
            said = str(error).strip().splitlines()  # some say their whole traceback
            raise GuardError(
                f"the guard cannot read what is written in picture {image.name!r}: "
                f"{type(error).__name__}: {said[-1] if said else 'nothing more is known'}"
            ) from error
        lines: tuple[str, ...] = getattr(found, "txts", None) or ()
        text = " ".join(" ".join(filter(_has_letter, lines)).split())
        return text[:MAX_LETTERS] if sum(map(str.isalpha, text)) >= _MIN_LETTERS else ""


def picture_reader(*, n_threads: int) -> PictureReader | None:
    """A reader, None where its package is not installed. Loads nothing yet."""
    return PictureReader(n_threads=n_threads) if find_spec(PACKAGE) is not None else None


def _load_engine(n_threads: int) -> RapidOCR:
    import_onnxruntime()  # before RapidOCR does
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",  # it would write over the chat
            "Global.text_score": _MIN_CONFIDENCE,
            "Global.max_side_len": _MAX_SIDE,
            "Rec.rec_batch_num": 1,  # lines at once: six take twice the memory
            "EngineConfig.onnxruntime.intra_op_num_threads": n_threads,
        }
    )


def _widened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An oblong picture with its last line repeated, so that no side is too long for the other."""
    height, width, _ = pixels.shape
    down = max(0, -(-width // _MAX_ASPECT) - height)
    right = max(0, -(-height // _MAX_ASPECT) - width)
    return np.pad(pixels, ((0, down), (0, right), (0, 0)), mode="edge")


def _has_letter(line: str) -> bool:
    return any(map(str.isalpha, line))
