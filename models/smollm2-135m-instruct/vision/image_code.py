"""What the image tokens of a picture should be: the words that it shows, in the model's own tokens.

The language model is frozen, so an image token is understood if it lies where a text token's
embedding lies. Each cell of the 8×8 grid either carries the token that begins there or is blank;
a picture of a thing carries its name wherever it shows it. Words are in lower case and without
punctuation, which halves what has to be learned about spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from backbone import IMAGE_SIDE, N_CELLS_SIDE, N_PATCHES_SIDE, PATCH_SIDE
from numpy.typing import NDArray
from text_images import Line

BLANK = 0
IGNORED = -100
N_CHARACTERS = 38  # blank, a–z, 0–9, anything else
N_LETTERS = 10
"""Letters of a word that are spelled out; hardly a token is longer."""
N_CELLS = N_CELLS_SIDE**2
_CELL_SIDE = IMAGE_SIDE // N_CELLS_SIDE
_PUNCTUATION = ".,;:!?\"'()[]{}<>“”‘’…-–—*"


class WordCodec:
    """Words to class indices: 0 is blank, class i > 0 stands for `token_ids[i]`."""

    def __init__(
        self,
        words: Iterable[str],
        tokenize: Callable[[str], Sequence[int]],
        piece: Callable[[int], bytes],
    ) -> None:
        """tokenize: plain text to the language model's token ids; piece: a token's bytes."""
        self._tokenize = tokenize
        self._piece = piece
        known = sorted({token_id for word in words for token_id in tokenize(" " + word)})
        self.token_ids = [-1, *known]
        self._pieces_by_word: dict[str, tuple[tuple[int, int], ...]] = {}
        self._classes = {token_id: index for index, token_id in enumerate(self.token_ids)}

    def pieces(self, word: str) -> tuple[tuple[int, int], ...]:
        """(class, index of its first letter) of each token of a word; unknown ones are IGNORED."""
        if word not in self._pieces_by_word:
            self._pieces_by_word[word] = self._split(word)
        return self._pieces_by_word[word]

    def _split(self, word: str) -> tuple[tuple[int, int], ...]:
        offset, result = -1, []
        for token_id in self._tokenize(" " + word):
            result.append((self._classes.get(token_id, IGNORED), max(0, offset)))
            offset += len(self._piece(token_id).decode("utf-8", "replace"))
        return tuple(result)

    def spellings(self) -> NDArray[np.int64]:
        """Letters of each class's token, int64 (n_classes, N_LETTERS): BLANK after its end."""
        table = np.full((len(self.token_ids), N_LETTERS), BLANK, np.int64)
        for index, token_id in enumerate(self.token_ids[1:], start=1):
            text = self._piece(token_id).decode("utf-8", "replace").strip()
            codes = [_character(character) for character in text[:N_LETTERS]]
            table[index, : len(codes)] = codes
        return table


def clean_word(word: str) -> str:
    """A word as it is coded: lower case, no punctuation around it."""
    return word.strip(_PUNCTUATION).lower()


def text_cells(lines: Sequence[Line], codec: WordCodec) -> NDArray[np.int64]:
    """Class of each cell, int64 (64,), for lines of text."""
    cells = np.full(N_CELLS, BLANK, np.int64)
    for line in lines:
        # Where two lines share a row, the lower one takes the cells that are left. A row of its own
        # further down would ask the model to count lines, which it does not learn (tried).
        middle = (line.top + line.bottom) / 2
        row = min(max(int(middle // _CELL_SIDE), 0), N_CELLS_SIDE - 1)
        for word, first in _words(line.text):
            for index, offset in codec.pieces(word):
                # Bytes of a broken-up character count as letters: stay on the line.
                letter = min(first + offset, len(line.text) - 1)
                column = int(line.starts[letter] // _CELL_SIDE)
                _put(cells, row * N_CELLS_SIDE + min(max(column, 0), N_CELLS_SIDE - 1), index)
    return cells


def thing_cells(name: str, codec: WordCodec) -> NDArray[np.int64]:
    """Class of each cell, int64 (64,), for a picture of one thing: its name, everywhere.

    Tokens of a longer name stand side by side, each in its part of the image's width, so that each
    row reads as the name does. Blank cells round the thing would only be read as something else.
    """
    classes = np.array([index for word in name.split() for index, _ in codec.pieces(word)])
    return classes[np.arange(N_CELLS) % N_CELLS_SIDE * len(classes) // N_CELLS_SIDE]


def character_grid(lines: Sequence[Line]) -> NDArray[np.int64]:
    """Characters at two points of each patch, int64 (256, 2): a quarter and three of its width."""
    grid = np.full((N_PATCHES_SIDE, 2 * N_PATCHES_SIDE), BLANK, np.int64)
    points = (np.arange(2 * N_PATCHES_SIDE) + 0.5) * PATCH_SIDE / 2
    for line in lines:
        middle = (line.top + line.bottom) / 2
        reach = max(PATCH_SIDE / 2, (line.bottom - line.top) / 2)
        rows = np.abs((np.arange(N_PATCHES_SIDE) + 0.5) * PATCH_SIDE - middle) <= reach
        at = np.searchsorted(np.array(line.starts), points, side="right") - 1
        codes = [_character(line.text[k]) if 0 <= k < len(line.text) else BLANK for k in at]
        grid[rows] = np.where(np.array(codes) != BLANK, codes, grid[rows])
    return grid.reshape(N_PATCHES_SIDE**2, 2)


def _words(text: str) -> Iterable[tuple[str, int]]:
    """Each coded word of a line with the index of its first letter."""
    position = 0
    for raw in text.split(" "):
        word = clean_word(raw)
        if word:
            yield word, position + raw.lower().index(word)
        position += len(raw) + 1


def _put(cells: NDArray[np.int64], cell: int, index: int) -> None:
    """Put a class into a cell, or into the next one that is free."""
    while cell < N_CELLS - 1 and cells[cell] != BLANK:
        cell += 1
    cells[cell] = index


def _character(character: str) -> int:
    lower = character.lower()
    if "a" <= lower <= "z":
        return 1 + ord(lower) - ord("a")
    if "0" <= lower <= "9":
        return 27 + ord(lower) - ord("0")
    return BLANK if lower == " " else 37
