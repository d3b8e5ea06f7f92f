"""Stage 2: teach the vision model where every character and word of an image lies.

No language model takes part but its token embeddings: each cell's image token must lie nearest to
the embedding of the token that begins there. Resumes from its checkpoint; stop it at any time.

    python train_dense.py --work DIR --images 60000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Literal, get_args

import torch
from backbone import VisionModel, load_dinov2_inplace
from dense_loss import MIDDLE_BLOCK, SPELLING_BLOCK, DenseHeads, balanced_loss
from examples import Batch, Examples, Mixture
from export_gguf import load_projector_inplace
from image_code import BLANK, IGNORED
from learning_curve import Meters, append_row
from torch import Tensor, nn
from torch.nn import functional as F
from workspace import Work, add_work_options, load_checkpoint, prepare_torch, save_checkpoint

CURVE_COLUMNS = (
    "images", "lesson", "lr_factor", "characters", "words", "names", "blank_kept",
    "letters", "character_loss", "spelling_loss", "word_loss", "images_per_s",
)  # fmt: skip
WARM_UP_IMAGES = 1_500
Lesson = Literal["characters", "words", "apart", "both"]
"""Words come only once characters are read. `characters`: the lower half alone. `words`: the upper
half on a frozen lower one. `apart`: each half by its own loss; the words' early gradients, which
mean nothing yet, would undo what the lower half knows (seen: from 61 % to 9 % within 400 images).
`both`: all of it by all losses, once words are read."""


def main() -> None:
    """Train, saving a checkpoint and a row of the learning curve every few minutes."""
    options = _parse()
    prepare_torch(options)
    work = Work.open(options)
    model = VisionModel(options.blocks, work.n_embd)
    heads = DenseHeads(work.word_embeddings())
    optimizers = _optimizers(model, heads, options.learning_rate)
    n_images = 0
    if work.dense_checkpoint.exists():
        state = load_checkpoint(work.dense_checkpoint)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        # Another stage's checkpoint brings no optimizers of this one.
        for optimizer, saved in zip(optimizers, state.get("optimizers", ()), strict=False):
            optimizer.load_state_dict(saved)
        n_images = state["n_images"]
        print(f"resuming after {n_images} images")
    elif options.start is not None:
        n_images = load_projector_inplace(model, options.start)
        print(f"starting from {options.start}, trained on {n_images} images")
    else:
        load_dinov2_inplace(model, options.dinov2)
    mixture = Mixture(pictures=options.pictures, ease=options.ease, max_words=options.max_words)
    examples = Examples(work, mixture, batch_size=options.batch_size, seed=n_images + 1)
    batches = examples.batches(options.drawers)
    spellings = torch.tensor(work.codec.spellings())
    meters, shown_s = Meters(), time.perf_counter()
    while n_images < options.images:
        factor = _learning_rate_factor(n_images, options.images, options.cooldown)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
        loss = _loss(
            model, heads, next(batches).on(spellings.device), spellings, options.lesson, meters
        )
        loss.backward()
        nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        n_images += options.batch_size
        if meters.n_batches == options.report_batches or n_images >= options.images:
            elapsed_s = time.perf_counter() - shown_s
            row = {
                "images": n_images,
                "lesson": options.lesson,
                "lr_factor": round(factor, 3),
                **meters.means(),
                "images_per_s": round(meters.n_batches * options.batch_size / elapsed_s, 2),
            }
            append_row(work.folder / "dense_curve.csv", CURVE_COLUMNS, row)
            print(row, flush=True)
            save_checkpoint(
                work.dense_checkpoint,
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "n_images": n_images,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                },
            )
            meters, shown_s = Meters(), time.perf_counter()


def _loss(
    model: VisionModel,
    heads: DenseHeads,
    batch: Batch,
    spellings: Tensor,
    lesson: Lesson,
    meters: Meters,
) -> Tensor:
    pixels, cells, characters = batch.pixels, batch.cells, batch.characters
    meters.n_batches += 1
    with torch.autocast(pixels.device.type, torch.bfloat16):
        # 1. Characters, from the middle of the model.
        with torch.set_grad_enabled(lesson != "words"):
            middle = model.run(model.embed(pixels), 0, MIDDLE_BLOCK)
            character_logits = heads.character_logits(middle[:, :-1])
            character_loss = balanced_loss(character_logits.flatten(0, -2), characters.flatten())
        _measure(meters, "characters", character_logits.argmax(-1), characters)
        meters.add("character_loss", float(character_loss.detach()), 1)
        if lesson == "characters":
            return character_loss
        # 2. How the word that begins in a cell is spelled.
        if lesson == "apart":
            middle = middle.detach()
        upper = model.run(middle, MIDDLE_BLOCK, SPELLING_BLOCK)
        is_text = (characters[:, :, 0] != IGNORED).any(1)
        spelled = (cells > BLANK) & is_text[:, None]
        spelling_logits = heads.spelling_logits(upper)[spelled]
        letters = spellings[cells[spelled]]
        spelling_loss = F.cross_entropy(spelling_logits.flatten(0, 1).float(), letters.flatten())
        # 3. Words, from its end.
        tokens = model.tokens(upper, SPELLING_BLOCK)
        word_logits = heads.word_logits(tokens.detach())
        word_loss = heads.word_loss(tokens, cells)
    with torch.no_grad():
        _measure(meters, "letters", spelling_logits.argmax(-1), letters)
        guesses = word_logits.argmax(-1)
        _measure(meters, "words", guesses[is_text], cells[is_text])
        _measure(meters, "names", guesses[~is_text], cells[~is_text])
        blank = cells == BLANK
        meters.add("blank_kept", float((guesses[blank] == BLANK).sum()), float(blank.sum()))
        meters.add("spelling_loss", float(spelling_loss.detach()), 1)
        meters.add("word_loss", float(word_loss.detach()), 1)
    loss = spelling_loss + word_loss
    return loss if lesson == "words" else character_loss + loss


def _measure(meters: Meters, name: str, guesses: Tensor, targets: Tensor) -> None:
    counted = (targets != BLANK) & (targets != IGNORED)
    meters.add(name, float((guesses == targets)[counted].sum()), float(counted.sum()))


def _optimizers(model: VisionModel, heads: DenseHeads, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices (half the images of AdamW for the same loss), AdamW else."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in taken]
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["base_lr"] = rate
    return [muon, adamw]


def _learning_rate_factor(n_images: int, n_total: int, cooldown: float) -> float:
    """Warm-up, a plateau, and a linear way down over the last part: any plateau can be ended."""
    up = min(1.0, (n_images + 1) / WARM_UP_IMAGES)
    down = (n_total - n_images) / max(1.0, cooldown * n_total)
    return max(0.02, min(up, down))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_options(parser)
    parser.add_argument("--start", type=Path, help="go on from a projector file, not from DINOv2")
    parser.add_argument("--lesson", choices=get_args(Lesson), default="both")
    parser.add_argument("--images", type=int, default=400_000, help="images in all")
    parser.add_argument("--cooldown", type=float, default=0.2, help="last share, rate going down")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pictures", type=float, default=0.2, help="share of pictures of things")
    parser.add_argument("--ease", type=float, default=0.0, help="1: large dark text on white")
    parser.add_argument("--max-words", type=int, default=14)
    parser.add_argument("--report-batches", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
