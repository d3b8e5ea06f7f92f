"""Dense supervision: readers of characters and words at every place, and their loss."""

from __future__ import annotations

from backbone import WIDTH, to_cells
from image_code import BLANK, IGNORED, N_CHARACTERS, N_LETTERS
from torch import Tensor, nn
from torch.nn import functional as F

MIDDLE_BLOCK = 4
SPELLING_BLOCK = 8
"""Characters are read after 4 blocks, spelling and words after all of them."""
DISTANCE_WEIGHT = 2.0
SHARPNESS = 32.0
"""Of the word logits, in units of an embedding's own square: at 8, even a token that lies exactly
right is not certain of its word."""


class DenseHeads(nn.Module):
    """Readers of the middle layer's characters and of the image tokens' words."""

    def __init__(self, word_embeddings: Tensor) -> None:
        """word_embeddings: float (n_classes, n_embd), frozen; row 0 is the blank's."""
        super().__init__()
        self.characters = nn.Linear(WIDTH, 2 * N_CHARACTERS)
        self.norm = nn.LayerNorm(WIDTH)
        self.spelling = nn.Linear(4 * WIDTH, N_LETTERS * N_CHARACTERS)
        self.spelling_norm = nn.LayerNorm(4 * WIDTH)
        self._words = word_embeddings
        self._unit = float(word_embeddings[1:].pow(2).sum(-1).mean())

    @property
    def typical_length(self) -> float:
        """Of a word's embedding."""
        return self._unit**0.5

    def character_logits(self, patch_states: Tensor) -> Tensor:
        """(n_batch, 256, 2, N_CHARACTERS)."""
        logits = self.characters(self.norm(patch_states))
        return logits.view(*patch_states.shape[:2], 2, N_CHARACTERS)

    def word_logits(self, tokens: Tensor) -> Tensor:
        """By the squared distance to each word's embedding, up to a constant per token."""
        products = tokens.float() @ self._words.T - 0.5 * self._words.pow(2).sum(-1)
        return SHARPNESS / self._unit * products

    def word_loss(self, tokens: Tensor, classes: Tensor) -> Tensor:
        """How far image tokens (…, n_embd) are from their classes' (…) embeddings.

        Cross-entropy says which embedding is nearest, and alone it rewards going ever further out
        (seen: tokens 18 long where embeddings are 2.8, which no language model reads). The squared
        distance, in units of an embedding's own square, keeps them where tokens lie.
        """
        wanted = self._words[classes.clamp(min=0)]
        distance = (tokens.float() - wanted).pow(2).sum(-1) / self._unit
        nearest = F.cross_entropy(
            self.word_logits(tokens).flatten(0, -2).float(),
            classes.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        return _balanced(nearest + DISTANCE_WEIGHT * distance.flatten(), classes.flatten())

    def spelling_logits(self, states: Tensor) -> Tensor:
        """(n_batch, 64, N_LETTERS, N_CHARACTERS): letters of the word that begins in each cell."""
        logits = self.spelling(self.spelling_norm(to_cells(states)))
        return logits.view(len(states), -1, N_LETTERS, N_CHARACTERS)


def balanced_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in which the many blanks weigh together as much as half of the others."""
    losses = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
    return _balanced(losses, targets)


def _balanced(losses: Tensor, targets: Tensor) -> Tensor:
    blank = targets == BLANK
    full = ~blank & (targets != IGNORED)
    return losses[full].sum() / full.sum().clamp(min=1) + 0.5 * losses[
        blank
    ].sum() / blank.sum().clamp(min=1)
