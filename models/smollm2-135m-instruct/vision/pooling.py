"""A block made by hand: it gives every patch what DINOv2's class token knows of the whole picture.

A cell's own patches tell a cat from a dog less often than the class token does (49 % of held-out
drawings against 76 %), and the projector sees a cell's patches alone. So one more block follows
DINOv2's: each of its heads looks at the class token and nothing else, and adds its standardized
state to every patch. Nothing of it is trained; a dozen pictures would do to compute it.
"""

from __future__ import annotations

import math

import torch
from backbone import BLOCK_EPSILON, N_HEADS, WIDTH, Block
from torch import Tensor
from torch.nn import functional as F

SHARE = 30.0
"""Standard deviation of what is added; a patch's own state has 2.3."""
_MARGIN = math.log(257 * 1000)
"""The class token's attention score above the next one: a thousandth goes to all others."""
_HEAD_WIDTH = WIDTH // N_HEADS


@torch.no_grad()
def make_pooling_inplace(block: Block, states: Tensor) -> None:
    """Fill a block from states that reach it: (n_pictures, 257, WIDTH), class token last."""
    normal = F.layer_norm(states.float(), (WIDTH,), eps=BLOCK_EPSILON)
    whole, patches = normal[:, -1], normal[:, :-1].flatten(0, 1)
    for parameter in block.parameters():
        parameter.zero_()
    for ones in (block.norm1.weight, block.norm2.weight, block.scale1, block.scale2):
        ones.fill_(1.0)
    # Every query is the same: the direction in which the class token differs from the patches.
    direction = _class_token_direction(whole, patches)
    margin = float((whole @ direction).min() - (patches @ direction).max())
    if margin <= 0:
        raise ValueError("no direction tells the class token from the patches; is this DINOv2?")
    for head in range(N_HEADS):
        block.key.weight[head * _HEAD_WIDTH] = direction * (_MARGIN / margin)
        block.query.bias[head * _HEAD_WIDTH] = math.sqrt(_HEAD_WIDTH)
    deviation, mean = torch.std_mean(whole, 0)
    block.value.weight.copy_(torch.diag(1 / deviation))
    block.value.bias.copy_(-mean / deviation)
    block.out.weight.copy_(SHARE * torch.eye(WIDTH))


def _class_token_direction(whole: Tensor, patches: Tensor) -> Tensor:
    """Fisher's: the difference of the means, whitened by the patches' covariance."""
    covariance = torch.cov(patches.T) + 1e-2 * torch.eye(WIDTH)
    direction = torch.linalg.solve(covariance, whole.mean(0) - patches.mean(0))
    return direction / direction.norm()
