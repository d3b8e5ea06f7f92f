"""Stage 3: let the frozen language model say what helps it.

The loss is that of the right answer to a question about the image, through the language model, with
the dense loss beside it. The upper blocks of the vision model learn; the lower ones stay. Resumes
from its checkpoint, and begins with the stages' before it.

    python train_language.py --work DIR --images 4000
"""

from __future__ import annotations

import argparse
import time

import torch
from backbone import VisionModel
from dense_loss import DenseHeads
from examples import Examples, Mixture
from language_loss import answer_loss
from language_model import LanguageModel
from learning_curve import Meters, append_row
from torch import nn
from workspace import Work, add_work_options, load_checkpoint, prepare_torch, save_checkpoint

WARM_UP_IMAGES = 160
COLUMNS = ("images", "answer_loss", "word_loss", "images_per_s")


def main() -> None:
    """Train, saving a checkpoint and a row of the learning curve every few minutes."""
    options = _parse()
    prepare_torch(options)
    work = Work.open(options)
    language_model = LanguageModel(work.language_model, torch.bfloat16)
    model = VisionModel(options.blocks, work.n_embd)
    heads = DenseHeads(work.word_embeddings())
    resumed = work.language_checkpoint.exists()
    checkpoint = work.language_checkpoint if resumed else work.dense_checkpoint
    state = load_checkpoint(checkpoint)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])
    n_done = state.get("n_language_images", 0)
    first = options.blocks - options.learned_blocks
    learned = [model.project2.bias] if options.bias else list(model.parameters_from(first))
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=0.01)
    if resumed:
        optimizer.load_state_dict(state["optimizer"])
    mixture = Mixture(pictures=options.pictures, ease=0.0, max_words=10)
    examples = Examples(work, mixture, batch_size=options.batch_size, seed=10_000 + n_done)
    batches = examples.batches(options.drawers)
    meters, shown_s = Meters(), time.perf_counter()
    while n_done < options.images:
        down = (options.images - n_done) / (0.5 * options.images)
        factor = min(1.0, (n_done + 1) / WARM_UP_IMAGES, down)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * max(0.02, factor)
        batch = next(batches).on(torch.get_default_device())
        with torch.autocast(batch.pixels.device.type, torch.bfloat16):
            with torch.no_grad():
                middle = model.run(model.embed(batch.pixels), 0, first)
            tokens = model.tokens(middle, first)
            word_loss = heads.word_loss(tokens, batch.cells)
            language_loss = answer_loss(language_model, tokens, batch.frames)
        (language_loss + options.dense_share * word_loss).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n_done += options.batch_size
        meters.n_batches += 1
        meters.add("answer_loss", float(language_loss.detach()), 1)
        meters.add("word_loss", float(word_loss.detach()), 1)
        if meters.n_batches == options.report_batches or n_done >= options.images:
            speed = meters.n_batches * options.batch_size / (time.perf_counter() - shown_s)
            row = {"images": n_done, **meters.means(), "images_per_s": round(speed, 2)}
            append_row(work.folder / "language_curve.csv", COLUMNS, row)
            print(row, flush=True)
            save_checkpoint(
                work.language_checkpoint,
                {"model": model.state_dict(), "heads": heads.state_dict(),
                 "n_images": state["n_images"], "n_language_images": n_done,
                 "optimizer": optimizer.state_dict()},
            )  # fmt: skip
            meters, shown_s = Meters(), time.perf_counter()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_options(parser)
    parser.set_defaults(batch_size=8)
    parser.add_argument("--images", type=int, default=40_000, help="images in all")
    parser.add_argument("--learned-blocks", type=int, default=0, help="upper blocks that learn")
    parser.add_argument("--bias", action="store_true", help="learn the projector's bias alone")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--dense-share", type=float, default=0.5, help="weight of the dense loss")
    parser.add_argument("--pictures", type=float, default=0.3, help="share of pictures of things")
    parser.add_argument("--report-batches", type=int, default=25)
    return parser.parse_args()


if __name__ == "__main__":
    main()
