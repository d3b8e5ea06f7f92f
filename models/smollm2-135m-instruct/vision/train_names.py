"""Stage 1: name things, on what DINOv2 already sees.

The backbone stays as it is, so its states are computed once for a few thousand pictures; only the
projector learns, on single cells: each cell that shows a part of a thing must give the thing's
name. Minutes on a CPU.

    python train_names.py --work DIR
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import torch
from backbone import VisionModel, load_dinov2_inplace, to_cells
from dense_loss import DenseHeads, balanced_loss
from icons import Icon, picture
from image_code import BLANK, thing_cells
from learning_curve import Meters, append_row
from torch import Tensor
from workspace import Work, add_work_options, save_checkpoint

IMAGES_AT_ONCE = 32
CELLS_AT_ONCE = 1024
COLUMNS = ("epoch", "word_loss", "cells", "blank_kept", "held_out_cells", "held_out_pictures")


def main() -> None:
    """Compute the states, train, and save a checkpoint with a row of the curve each epoch."""
    options = _parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    work = Work.open(options)
    model = VisionModel(options.blocks, work.n_embd)
    load_dinov2_inplace(model, options.dinov2)
    heads = DenseHeads(work.word_embeddings())
    rng = random.Random(options.seed)
    train = [icon for icon in work.icons if icon.split == "train"]
    held_out = [icon for icon in work.icons if icon.split == "test"]
    test_features, test_cells = _features(model, rng.sample(held_out, 200), None, work)
    features, cells = _features(model, _in_turn(train, options.pictures, rng), rng, work)
    rows, targets = features.flatten(0, 1), cells.flatten()
    learned = [*model.parameters_from(options.blocks), heads.blank]
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=0.05)
    n_steps = options.epochs * (len(rows) // CELLS_AT_ONCE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, n_steps)
    for epoch in range(1, options.epochs + 1):
        meters, order = Meters(), torch.randperm(len(rows))
        for chosen in order.split(CELLS_AT_ONCE)[: len(rows) // CELLS_AT_ONCE]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = heads.word_logits(model.project(rows[chosen].float()))
            loss = balanced_loss(logits, targets[chosen])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)  # without it, 2e-3 lost an epoch (seen)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            right, full = logits.detach().argmax(-1) == targets[chosen], targets[chosen] != BLANK
            meters.add("word_loss", float(loss.detach()), 1)
            meters.add("cells", float(right[full].sum()), float(full.sum()))
            meters.add("blank_kept", float(right[~full].sum()), float((~full).sum()))
        row = {
            "epoch": epoch,
            **meters.means(),
            **_held_out(model, heads, test_features, test_cells),
        }
        append_row(work.folder / "names_curve.csv", COLUMNS, row)
        print(row, flush=True)
        save_checkpoint(
            work.dense_checkpoint,
            {"model": model.state_dict(), "heads": heads.state_dict(), "n_images": len(features)},
        )


def _in_turn(icons: list[Icon], n_pictures: int, rng: random.Random) -> list[Icon]:
    """So many icons: all of them, shuffled, again and again."""
    chosen: list[Icon] = []
    while len(chosen) < n_pictures:
        chosen += rng.sample(icons, len(icons))
    return chosen[:n_pictures]


@torch.no_grad()
def _features(
    model: VisionModel, icons: list[Icon], rng: random.Random | None, work: Work
) -> tuple[Tensor, Tensor]:
    """What the backbone makes of one picture of each: bfloat16 (n, 64, 4 · WIDTH), and cells.

    rng: None draws plainly, as the held-out files are drawn.
    """
    kept: list[Tensor] = []
    cells: list[np.ndarray] = []
    started_s = time.perf_counter()
    for begin in range(0, len(icons), IMAGES_AT_ONCE):
        batch = icons[begin : begin + IMAGES_AT_ONCE]
        drawn = [picture(icon, rng or random.Random(0), plain=rng is None) for icon in batch]
        cells += [
            thing_cells(icon.name, pixels, work.codec)
            for icon, pixels in zip(batch, drawn, strict=True)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            states = model.embed(torch.from_numpy(np.stack(drawn)))
            kept.append(to_cells(model.run(states, 0, len(model.blocks))).to(torch.bfloat16))
        left_s = (time.perf_counter() - started_s) / (begin + len(batch)) * (len(icons) - begin)
        print(
            f"\rbackbone: {begin + len(batch)}/{len(icons)}, {left_s:.0f} s left",
            end="",
            flush=True,
        )
    print()
    return torch.cat(kept), torch.from_numpy(np.stack(cells))


@torch.no_grad()
def _held_out(
    model: VisionModel, heads: DenseHeads, features: Tensor, cells: Tensor
) -> dict[str, float]:
    """Share of held-out cells that are right, and of pictures whose commonest word is."""
    with torch.autocast("cpu", torch.bfloat16):
        guesses = heads.word_logits(model.project(features.float())).argmax(-1)
    full = cells != BLANK
    n_right = 0
    for guessed, wanted in zip(guesses, cells, strict=True):
        words = guessed[guessed != BLANK]
        n_right += bool(len(words)) and bool((wanted == words.mode().values).any())
    return {
        "held_out_cells": round(float((guesses == cells)[full].float().mean()), 4),
        "held_out_pictures": round(n_right / len(cells), 4),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_options(parser)
    parser.add_argument("--pictures", type=int, default=10_000, help="pictures to draw")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
