"""Stage 1: name things, on what DINOv2 already sees.

DINOv2 stays as it is, so its states are computed once for a few thousand pictures; a block made by
hand pools them (see `pooling`), and the projector learns, on single cells: each of them must give
its part of the thing's name. Minutes on a CPU.

    python train_names.py --work DIR
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from backbone import N_DINOV2_BLOCKS, VisionModel, load_dinov2_inplace, to_cells
from dense_loss import DenseHeads
from icons import Icon, picture
from image_code import N_CELLS, thing_cells
from learning_curve import Meters, append_row
from pooling import make_pooling_inplace
from torch import Tensor
from workspace import Work, add_work_options, prepare_torch, save_checkpoint

IMAGES_AT_ONCE = 32
N_POOLED_PICTURES = 500
N_KEPT_CELLS = 4
"""Cells of each picture in an epoch, drawn anew: they are much alike."""
CELLS_AT_ONCE = 1024
DROPOUT = 0.3
USUAL_LENGTH = 2.8
"""Of token embeddings, for which the learning rate is good."""
COLUMNS = (
    "epoch",
    "word_loss",
    "length",
    "cells",
    "held_out_cells",
    "held_out_pictures",
)


def main() -> None:
    """Compute the states, train, and save a checkpoint with a row of the curve each epoch."""
    options = _parse()
    prepare_torch(options)
    work = Work.open(options)
    model = VisionModel(options.blocks, work.n_embd)
    load_dinov2_inplace(model, options.dinov2)
    heads = DenseHeads(work.word_embeddings())
    rng = random.Random(options.seed)
    train = [icon for icon in work.icons if icon.split == "train"]
    held_out = [icon for icon in work.icons if icon.split == "test"]
    test_icons = rng.sample(held_out, 200 if options.things is None else len(held_out))
    train_icons = _in_turn(train, options.pictures, rng)
    test_states = cached_states(model, test_icons, work.folder, None)
    states = cached_states(model, train_icons, work.folder, options.seed)
    test_cells, cells = _classes(test_icons, work), _classes(train_icons, work)
    *_, last_block = model.each_block()
    make_pooling_inplace(last_block, states[:N_POOLED_PICTURES].to(torch.get_default_device()))
    test_rows, rows = _pooled(model, test_states), _pooled(model, states)
    learned = list(model.parameters_from(len(model.blocks)))
    # Adam's steps are of one size, whatever that of what it learns; where embeddings are short (0.5
    # in Qwen2.5, 2.8 in SmolLM2), so must be the steps of the last layer (else it never got near).
    others, last_layer = learned[:-2], list(model.project2.parameters())
    length = heads.typical_length / USUAL_LENGTH
    with torch.no_grad():
        for parameter in last_layer:
            parameter.mul_(length)
    rates = [options.learning_rate, options.learning_rate * length]
    optimizer = torch.optim.AdamW(
        [{"params": part} for part in (others, last_layer)], lr=rates[0], weight_decay=0.1
    )
    n_steps = options.epochs * (len(rows) * N_KEPT_CELLS // CELLS_AT_ONCE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, n_steps, pct_start=0.1)
    device = torch.get_default_device()
    for epoch in range(1, options.epochs + 1):
        meters, order = Meters(), torch.randperm(len(rows), device="cpu")
        n_pictures = CELLS_AT_ONCE // N_KEPT_CELLS
        for chosen in order.split(n_pictures)[: len(rows) // n_pictures]:
            kept = torch.rand(n_pictures, N_CELLS, device="cpu").argsort(1)[:, :N_KEPT_CELLS]
            classes = cells[chosen].gather(1, kept).to(device)
            batch = rows[chosen[:, None], kept].to(device).float()
            with torch.autocast(options.device, torch.bfloat16):
                tokens = model.project(batch, dropout=DROPOUT)
                loss = heads.word_loss(tokens, classes)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)  # without it, 2e-3 lost an epoch (seen)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            right = heads.word_logits(tokens.detach()).argmax(-1) == classes
            meters.add("word_loss", float(loss.detach()), 1)
            meters.add("length", float(tokens.detach().norm(dim=-1).mean()), 1)
            meters.add("cells", float(right.sum()), right.numel())
        row = {
            "epoch": epoch,
            **meters.means(),
            **_held_out(model, heads, test_rows, test_cells),
        }
        append_row(work.folder / "names_curve.csv", COLUMNS, row)
        print(row, flush=True)
        save_checkpoint(
            work.dense_checkpoint,
            {"model": model.state_dict(), "heads": heads.state_dict(), "n_images": len(rows)},
        )


def _in_turn(icons: list[Icon], n_pictures: int, rng: random.Random) -> list[Icon]:
    """So many icons: every name in turn, and the icons of each name in turn, shuffled."""
    by_name: dict[str, list[Icon]] = {}
    for icon in rng.sample(icons, len(icons)):
        by_name.setdefault(icon.name, []).append(icon)
    endless = [itertools.cycle(of_name) for of_name in by_name.values()]
    return [next(endless[index % len(endless)]) for index in range(n_pictures)]


def _pictures(icons: list[Icon], seed: int | None) -> Iterator[np.ndarray]:
    """Each icon drawn, uint8 (224, 224, 3); picture k is the same for the same seed.

    seed: None draws plainly, as the held-out files are drawn.
    """
    for index, icon in enumerate(icons):
        rng = random.Random(0 if seed is None else f"{seed}-{index}")
        yield picture(icon, rng, plain=seed is None)


def cached_states(model: VisionModel, icons: list[Icon], folder: Path, seed: int | None) -> Tensor:
    """DINOv2's last states, bfloat16 (n, 257, WIDTH), of one picture of each.

    Kept in the working folder: only the first run pays for them.
    """
    path = folder / f"states-{N_DINOV2_BLOCKS}-{seed}-{len(icons)}.pt"
    if path.exists():
        return torch.load(path, weights_only=True, map_location="cpu")["states"]
    kept: list[Tensor] = []
    n_done, started_s, drawn = 0, time.perf_counter(), _pictures(icons, seed)
    while batch := list(itertools.islice(drawn, IMAGES_AT_ONCE)):
        pixels = torch.tensor(np.stack(batch))
        with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16):
            states = model.run(model.embed(pixels), 0, N_DINOV2_BLOCKS)
        kept.append(states.to("cpu", torch.bfloat16))
        n_done += len(batch)
        left_s = (time.perf_counter() - started_s) / n_done * (len(icons) - n_done)
        print(f"\rbackbone: {n_done}/{len(icons)}, {left_s:.0f} s left", end="", flush=True)
    print()
    states = torch.cat(kept)
    save_checkpoint(path, {"states": states})
    return states


def _classes(icons: list[Icon], work: Work) -> Tensor:
    """Classes of the cells of each picture, int64 (n, 64)."""
    return torch.from_numpy(np.stack([thing_cells(icon.name, work.codec) for icon in icons]))


@torch.no_grad()
def _pooled(model: VisionModel, states: Tensor) -> Tensor:
    """What the projector is given: bfloat16 (n, 64, 4 · WIDTH)."""
    pooled: list[Tensor] = []
    for batch in states.split(IMAGES_AT_ONCE):
        on_device = batch.to(torch.get_default_device()).float()
        with torch.autocast(on_device.device.type, torch.bfloat16):
            end = model.run(on_device, N_DINOV2_BLOCKS, len(model.blocks))
        pooled.append(to_cells(end).to("cpu", torch.bfloat16))
    return torch.cat(pooled)


@torch.no_grad()
def _held_out(
    model: VisionModel, heads: DenseHeads, rows: Tensor, cells: Tensor
) -> dict[str, float]:
    """Share of held-out cells that are right, and of pictures whose commonest word is."""
    guessed: list[Tensor] = []
    device = torch.get_default_device()
    for batch in rows.split(IMAGES_AT_ONCE):
        with torch.autocast(device.type, torch.bfloat16):
            tokens = model.project(batch.to(device).float())
        guessed.append(heads.word_logits(tokens).argmax(-1).cpu())
    guesses = torch.cat(guessed)
    commonest = guesses.mode(1).values
    n_right = int((cells == commonest[:, None]).any(1).sum())
    return {
        "held_out_cells": round(float((guesses == cells).float().mean()), 4),
        "held_out_pictures": round(n_right / len(cells), 4),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_options(parser)
    parser.add_argument("--pictures", type=int, default=8_000, help="pictures to draw")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
