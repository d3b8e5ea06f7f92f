"""Stage 1: name things, on what DINOv2 already sees.

All blocks but the last stay as they are, so their states are computed once for a few thousand
pictures. The last block and the projector learn: each cell that shows a part of a thing must give
the thing's name. The block has to learn too, for one cell alone knows too little of the whole
(49 % of held-out drawings; a linear classifier of all cells' mean: 72 %). Minutes on a CPU.

    python train_names.py --work DIR
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator

import numpy as np
import torch
from backbone import VisionModel, keep_cells, kept_to_cells, load_dinov2_inplace
from dense_loss import DenseHeads
from icons import Icon, picture
from image_code import BLANK, N_CELLS, thing_cells
from learning_curve import Meters, append_row
from torch import Tensor
from workspace import Work, add_work_options, save_checkpoint

IMAGES_AT_ONCE = 32
BATCH_SIZE = 16
N_KEPT_CELLS = 32
"""Cells of each picture in a step of training, drawn anew: half the work, and a kind of dropout."""
Drawn = tuple[np.ndarray, np.ndarray]
"""Pixels, uint8 (224, 224, 3), and the classes of the cells, int64 (64,)."""
COLUMNS = (
    "epoch",
    "word_loss",
    "length",
    "cells",
    "blank_kept",
    "held_out_cells",
    "held_out_pictures",
)


def main() -> None:
    """Compute the states, train, and save a checkpoint with a row of the curve each epoch."""
    options = _parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    work = Work.open(options)
    model = VisionModel(options.blocks, work.n_embd)
    load_dinov2_inplace(model, options.dinov2)
    heads = DenseHeads(work.word_embeddings())
    frozen = len(model.blocks) - options.learned_blocks
    rng = random.Random(options.seed)
    train = [icon for icon in work.icons if icon.split == "train"]
    held_out = [icon for icon in work.icons if icon.split == "test"]
    test_icons, train_icons = rng.sample(held_out, 200), _in_turn(train, options.pictures, rng)
    test_states, test_cells = cached_states(model, frozen, test_icons, work, None)
    states, cells = cached_states(model, frozen, train_icons, work, options.seed)
    learned = list(model.parameters_from(frozen))
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=0.05)
    n_steps = options.epochs * (len(states) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, n_steps)
    for epoch in range(1, options.epochs + 1):
        meters, order = Meters(), torch.randperm(len(states))
        for chosen in order.split(BATCH_SIZE)[: len(states) // BATCH_SIZE]:
            kept = torch.rand(BATCH_SIZE, N_CELLS).argsort(1)[:, :N_KEPT_CELLS]
            classes = cells[chosen].gather(1, kept)
            with torch.autocast("cpu", torch.bfloat16):
                begin = keep_cells(states[chosen].float(), kept)
                end = model.run(begin, frozen, len(model.blocks))
                tokens = model.project(kept_to_cells(end))
                loss = heads.word_loss(tokens, classes)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)  # without it, 2e-3 lost an epoch (seen)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            guesses, full = heads.word_logits(tokens.detach()).argmax(-1), classes != BLANK
            meters.add("word_loss", float(loss.detach()), 1)
            meters.add("length", float(tokens.detach()[full].norm(dim=-1).mean()), 1)
            meters.add("cells", float((guesses == classes)[full].sum()), float(full.sum()))
            meters.add("blank_kept", float((guesses == BLANK)[~full].sum()), float((~full).sum()))
        row = {
            "epoch": epoch,
            **meters.means(),
            **_held_out(model, heads, frozen, test_states, test_cells),
        }
        append_row(work.folder / "names_curve.csv", COLUMNS, row)
        print(row, flush=True)
        save_checkpoint(
            work.dense_checkpoint,
            {"model": model.state_dict(), "heads": heads.state_dict(), "n_images": len(states)},
        )


def _in_turn(icons: list[Icon], n_pictures: int, rng: random.Random) -> list[Icon]:
    """So many icons: all of them, shuffled, again and again."""
    chosen: list[Icon] = []
    while len(chosen) < n_pictures:
        chosen += rng.sample(icons, len(icons))
    return chosen[:n_pictures]


def _pictures(icons: list[Icon], work: Work, seed: int | None) -> Iterator[Drawn]:
    """Each icon drawn, with its cells; picture k is the same for the same seed.

    seed: None draws plainly, as the held-out files are drawn.
    """
    for index, icon in enumerate(icons):
        rng = random.Random(0 if seed is None else f"{seed}-{index}")
        pixels = picture(icon, rng, plain=seed is None)
        yield pixels, thing_cells(icon.name, pixels, work.codec)


def cached_states(
    model: VisionModel, end: int, icons: list[Icon], work: Work, seed: int | None
) -> tuple[Tensor, Tensor]:
    """Residual streams before block `end`, bfloat16 (n, 257, WIDTH), of one picture of each; cells.

    Kept in the working folder: only the first run pays for them.
    """
    path = work.folder / f"states-{end}-{seed}-{len(icons)}.pt"
    if path.exists():
        stored = torch.load(path, weights_only=True)
        return stored["states"], stored["cells"]
    kept: list[Tensor] = []
    cells: list[np.ndarray] = []
    started_s, drawn = time.perf_counter(), _pictures(icons, work, seed)
    while batch := list(itertools.islice(drawn, IMAGES_AT_ONCE)):
        cells += [row for _, row in batch]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states = model.embed(torch.from_numpy(np.stack([pixels for pixels, _ in batch])))
            kept.append(model.run(states, 0, end).to(torch.bfloat16))
        left_s = (time.perf_counter() - started_s) / len(cells) * (len(icons) - len(cells))
        print(f"\rbackbone: {len(cells)}/{len(icons)}, {left_s:.0f} s left", end="", flush=True)
    print()
    stored = {"states": torch.cat(kept), "cells": torch.from_numpy(np.stack(cells))}
    save_checkpoint(path, stored)
    return stored["states"], stored["cells"]


@torch.no_grad()
def _held_out(
    model: VisionModel, heads: DenseHeads, frozen: int, states: Tensor, cells: Tensor
) -> dict[str, float]:
    """Share of held-out cells that are right, and of pictures whose commonest word is."""
    guessed: list[Tensor] = []
    for batch in states.split(IMAGES_AT_ONCE):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.tokens(batch.float(), frozen)
        guessed.append(heads.word_logits(tokens).argmax(-1))
    guesses, n_right = torch.cat(guessed), 0
    for row, wanted in zip(guesses, cells, strict=True):
        words = row[row != BLANK]
        n_right += bool(len(words)) and bool((wanted == words.mode().values).any())
    return {
        "held_out_cells": round(float((guesses == cells)[cells != BLANK].float().mean()), 4),
        "held_out_pictures": round(n_right / len(cells), 4),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_options(parser)
    parser.add_argument("--pictures", type=int, default=10_000, help="pictures to draw")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learned-blocks", type=int, default=1, help="last blocks that learn")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
