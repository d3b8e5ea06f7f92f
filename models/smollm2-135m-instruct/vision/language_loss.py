"""What the frozen language model makes of image tokens: an answer's loss, and its own words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from language_model import LanguageModel
from prompts import Frame
from torch import Tensor
from torch.nn import functional as F


def answer_loss(model: LanguageModel, images: Tensor, frames: Sequence[Frame]) -> Tensor:
    """Mean cross-entropy of the answers' tokens, given the image tokens (n, 64, n_embd)."""
    embeddings = model.token_embeddings
    rows, targets = [], []
    for image, frame in zip(images, frames, strict=True):
        text = embeddings[[*frame.before, *frame.after, *frame.answer]]
        n_before = len(frame.before)
        rows.append(torch.cat([text[:n_before], image.to(text.dtype), text[n_before:]]))
        n_prompt = n_before + len(image) + len(frame.after)
        targets.append((n_prompt - 1, frame.answer))
    # Padding at the end is never attended to by what comes before it: the attention is causal.
    states = model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
    wanted = torch.cat(
        [
            states[index, first : first + len(answer)]
            for index, (first, answer) in enumerate(targets)
        ]
    )
    token_ids = torch.tensor([token_id for _, answer in targets for token_id in answer])
    return F.cross_entropy(model.logits(wanted).float(), token_ids)


@torch.no_grad()
def greedy_answers(
    model: LanguageModel, images: Tensor, frames: Sequence[Frame], *, n_tokens: int, end_id: int
) -> list[list[int]]:
    """Token ids that the model answers with, at most so many, without the token that ends it."""
    answers: list[list[int]] = []
    for image, frame in zip(images, frames, strict=True):
        text = model.token_embeddings[[*frame.before, *frame.after]]
        n_before = len(frame.before)
        row = torch.cat([text[:n_before], image.to(text.dtype), text[n_before:]])[None]
        answer: list[int] = []
        while len(answer) < n_tokens:
            token_id = int(model.logits(model(row)[:, -1]).argmax())
            if token_id == end_id:
                break
            answer.append(token_id)
            row = torch.cat([row, model.token_embeddings[torch.tensor([[token_id]])]], 1)
        answers.append(answer)
    return answers
