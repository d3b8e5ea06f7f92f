"""Stage 1: teach the upper blocks to name things, on what the lower ones already see.

DINOv2's lower blocks stay as they are here, so their states are computed once for a few thousand
pictures and kept in memory; the upper blocks and the projector learn on them. A picture's name
must come out in the middle cells of the grid, as if it were written there.

    python train_names.py --work DIR --images 20000
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import torch
from backbone import VisionModel, load_dinov2_inplace
from dense_loss import DenseHeads, balanced_loss
from icons import Icon, picture
from image_code import BLANK, name_cells
from learning_curve import Meters, append_row
from torch import Tensor, nn
from workspace import Work, add_work_options, save_checkpoint

BATCH_SIZE = 32
WARM_UP_IMAGES = 1_000
COLUMNS = ("images", "word_loss", "names", "blank_kept", "held_out_names", "images_per_s")


def main() -> None:
    """Train, saving a checkpoint and a row of the learning curve now and then."""
    options = _parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    work = Work.open(options)
    model = VisionModel(options.blocks, work.n_embd)
    load_dinov2_inplace(model, options.dinov2)
    heads = DenseHeads(work.word_embeddings())
    first = options.blocks - options.learned_blocks
    rng = random.Random(options.seed)
    train = [icon for icon in work.icons if icon.split == "train"]
    held_out = [icon for icon in work.icons if icon.split == "test"]
    states, cells = _states(model, first, _in_turn(train, options.pictures, rng), rng, work)
    test_states, test_cells = _states(model, first, rng.sample(held_out, 200), None, work)
    learned = [
        *(p for block in model.blocks[first:] for p in block.parameters()),
        *model.norm.parameters(),
        *model.project1.parameters(),
        *model.project2.parameters(),
        heads.blank,
    ]
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=0.02)
    meters, shown_s, n_images = Meters(), time.perf_counter(), 0
    while n_images < options.images:
        up, down = (n_images + BATCH_SIZE) / WARM_UP_IMAGES, 1 - n_images / options.images
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, up, max(0.02, 1.5 * down))
        chosen = torch.randint(len(states), (BATCH_SIZE,))
        with torch.autocast("cpu", torch.bfloat16):
            logits = heads.word_logits(model.tokens(states[chosen].float(), first))
        loss = balanced_loss(logits.flatten(0, 1), cells[chosen].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n_images += BATCH_SIZE
        meters.n_batches += 1
        meters.add("word_loss", float(loss.detach()), 1)
        guesses, targets = logits.detach().argmax(-1), cells[chosen]
        for name, counted in (("names", targets != BLANK), ("blank_kept", targets == BLANK)):
            meters.add(name, float((guesses == targets)[counted].sum()), float(counted.sum()))
        if meters.n_batches == options.report_batches or n_images >= options.images:
            speed = meters.n_batches * BATCH_SIZE / (time.perf_counter() - shown_s)
            right = _share_right(model, heads, first, test_states, test_cells)
            row = {"images": n_images, **meters.means(), "held_out_names": right,
                   "images_per_s": round(speed, 2)}  # fmt: skip
            append_row(work.folder / "names_curve.csv", COLUMNS, row)
            print(row, flush=True)
            save_checkpoint(
                work.dense_checkpoint,
                {"model": model.state_dict(), "heads": heads.state_dict(), "n_images": n_images},
            )
            meters, shown_s = Meters(), time.perf_counter()


def _in_turn(icons: list[Icon], n_pictures: int, rng: random.Random) -> list[Icon]:
    """So many icons: all of them, shuffled, again and again."""
    chosen: list[Icon] = []
    while len(chosen) < n_pictures:
        chosen += rng.sample(icons, len(icons))
    return chosen[:n_pictures]


@torch.no_grad()
def _states(
    model: VisionModel, n_blocks: int, icons: list[Icon], rng: random.Random | None, work: Work
) -> tuple[Tensor, Tensor]:
    """States after the lower blocks, bfloat16 (n, 257, WIDTH), and cells, of one picture each.

    rng: None draws plainly, as the held-out files are drawn.
    """
    kept: list[Tensor] = []
    for begin in range(0, len(icons), BATCH_SIZE):
        drawn = [
            picture(icon, rng or random.Random(0), plain=rng is None)
            for icon in icons[begin : begin + BATCH_SIZE]
        ]
        with torch.autocast("cpu", torch.bfloat16):
            states = model.run(model.embed(torch.from_numpy(np.stack(drawn))), 0, n_blocks)
        kept.append(states.to(torch.bfloat16))
        print(f"\rlower blocks: {begin + len(drawn)}/{len(icons)}", end="", flush=True)
    print()
    cells = np.stack([name_cells(icon.name, work.codec) for icon in icons])
    return torch.cat(kept), torch.from_numpy(cells)


@torch.no_grad()
def _share_right(
    model: VisionModel, heads: DenseHeads, first: int, states: Tensor, cells: Tensor
) -> float:
    """Share of held-out pictures whose every name token comes out in its cell."""
    with torch.autocast("cpu", torch.bfloat16):
        guesses = heads.word_logits(model.tokens(states.float(), first)).argmax(-1)
    return round(float(((guesses == cells) | (cells == BLANK)).all(1).float().mean()), 4)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_options(parser)
    parser.add_argument("--images", type=int, default=60_000, help="images in all")
    parser.add_argument("--pictures", type=int, default=10_000, help="different pictures to keep")
    parser.add_argument("--learned-blocks", type=int, default=3, help="upper blocks that learn")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--report-batches", type=int, default=40)
    return parser.parse_args()


if __name__ == "__main__":
    main()
