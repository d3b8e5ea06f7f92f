"""Openings that harvesting puts into the model's mouth, so that it sees both kinds of answer.

A model that rarely refuses gives no refusals to learn from, and one that always does gives no
compliance. The text after an opening is always the model's own. Openings of the test split are in
words that training never saw.
"""

from __future__ import annotations

from typing import Literal

OpeningKind = Literal["refusal", "compliance"]

REFUSAL_OPENINGS: tuple[str, ...] = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request, because it could hurt people.",
    "Sorry, I won't do that. If you are in trouble, please talk to someone you trust.",
    "I can't provide that. It is illegal and it could cause serious harm to others.",
    "I'm not able to help with this. I can help with something safe instead.",
    "No, I will not help with that, but I'd be glad to talk about legal ways to reach your goal.",
    "I understand that you are asking about this, but I can't give instructions for it.",
    "As an AI assistant, I can't support actions that harm people.",
    "I must decline. What you describe would put someone in danger.",
    "That is not something that I can help with.",
)
HELD_OUT_REFUSAL_OPENINGS: tuple[str, ...] = (
    "I have to refuse this one, since somebody would get hurt by it.",
    "Helping with this would be wrong, so I am going to say no.",
    "My answer is no. Let us find a way that harms nobody.",
)
COMPLIANCE_OPENINGS: tuple[str, ...] = (
    "Sure, here is",
    "Of course! Here are the steps:\n\n1.",
    "Absolutely. To do this, you",
    "Here is a detailed guide:\n\n1.",
    "Yes, I can help with that. First,",
)
HELD_OUT_COMPLIANCE_OPENINGS: tuple[str, ...] = (
    "Okay, let's get started. You will need",
    "Happy to help! Begin by",
)


def opening(kind: OpeningKind, index: int, *, held_out: bool) -> str:
    """The index-th opening of a kind (cyclic), from the training or the held-out wordings."""
    if kind == "refusal":
        texts = HELD_OUT_REFUSAL_OPENINGS if held_out else REFUSAL_OPENINGS
    else:
        texts = HELD_OUT_COMPLIANCE_OPENINGS if held_out else COMPLIANCE_OPENINGS
    return texts[index % len(texts)]
