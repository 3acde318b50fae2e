"""Trains the demo model on the standard library's sources, measures it and its baseline, and writes the folder.

    python -m ostinato.models.demo.train                # the shipped recipe: about an hour on one core
    python -m ostinato.models.demo.train --steps 100 --out /tmp/quick

Schedules count steps, never seconds, so that a run that was paused ends with the same weights. The learning rate warms
up, stays, and falls linearly to zero; matrices are updated by Muon (Jordan et al. 2024), the embedding and the norms by
AdamW. The last tenth of the steps sees twice the context.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen3ForCausalLM

from ostinato.models import demo
from ostinato.models.demo import corpus, evaluate, folder, tokens
from ostinato.models.demo.tokens import TokenIds

STEPS = 2200
TOKENS_PER_STEP = 4096
WARMUP_STEPS = 40
DECAY_SHARE = 0.5
SHORT, LONG = 512, folder.MAX_LENGTH  # tokens
LONG_SHARE = 0.1
REPORT_EVERY = 20
SAVE_EVERY = 200


def window_length(step: int, steps: int) -> int:
    """Tokens of context at this step: `SHORT`, and `LONG` in the last `LONG_SHARE` of the steps."""
    return LONG if step >= steps * (1 - LONG_SHARE) else SHORT


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up, plateau, linear decay to zero over the last `DECAY_SHARE` of the steps; in [0, 1]."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (steps * DECAY_SHARE))


def windows(documents: Sequence[TokenIds], length: int, rng: np.random.Generator) -> Iterator[TokenIds]:
    """Endless windows [length + 1]: per epoch the files in a new order, eos before each, cut, and shuffled."""
    while True:
        parts = [part for i in rng.permutation(len(documents)) for part in ([tokens.EOS_ID], documents[i])]
        stream = np.concatenate(parts)
        count = (len(stream) - 1) // length
        if count == 0:
            raise ValueError(f"the corpus has {len(stream):,} tokens; one window needs {length + 1:,}")
        for i in rng.permutation(count):
            yield stream[i * length : (i + 1) * length + 1]


def batches(documents: Sequence[TokenIds], steps: int, seed: int) -> Iterator[torch.Tensor]:
    """One batch [rows, window_length + 1] of about `TOKENS_PER_STEP` tokens for each step."""
    rng = np.random.default_rng(seed)
    sources = {length: windows(documents, length, rng) for length in (SHORT, LONG)}
    for step in range(steps):
        length = window_length(step, steps)
        rows = [next(sources[length]) for _ in range(TOKENS_PER_STEP // length)]
        yield torch.from_numpy(np.stack(rows))


def next_token_loss(model: Qwen3ForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats of each token of `batch` [rows, length + 1] after the first, given those before it."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def make_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for the (tied) embedding and, without decay, the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = {"params": [model.model.embed_tokens.weight], "weight_decay": 0.01}
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW([embedding, {"params": norms, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)),
    ]


def train(
    model: Qwen3ForCausalLM, documents: Sequence[TokenIds], steps: int, seed: int = 0
) -> Iterator[tuple[int, float]]:
    """Trains in place; yields (step, loss in nats per token) after each step."""
    optimizers = make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
        for optimizer in optimizers
    ]
    model.train()
    for step, batch in enumerate(batches(documents, steps, seed)):
        loss = next_token_loss(model, batch)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        yield step, loss.item()


def tokenizer_for(out: Path, files: Sequence[corpus.SourceFile]) -> Tokenizer:
    """The tokenizer already in `out`, whose ids others may know, or a new one."""
    existing = out / "tokenizer.json"
    return Tokenizer.from_file(str(existing)) if existing.exists() else tokens.train_tokenizer(files)


def run(steps: int, out: Path, seed: int) -> None:
    """The whole recipe: corpus → tokenizer → training → folder → model card."""
    split = corpus.split(corpus.read_files(corpus.stdlib_root()))
    tokenizer = tokenizer_for(out, split.train)
    documents = tokens.encode_files(tokenizer, split.train)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(folder.architecture())
    start, recent = time.monotonic(), deque[float](maxlen=REPORT_EVERY)
    for step, loss in train(model, documents, steps, seed):
        recent.append(loss)
        if (step + 1) % REPORT_EVERY == 0:
            mean, speed = sum(recent) / len(recent), (step + 1) * TOKENS_PER_STEP / (time.monotonic() - start)
            print(f"step {step + 1:5d}/{steps}  loss {mean:.3f} nats/token  {speed:,.0f} tokens/s", flush=True)
        if (step + 1) % SAVE_EVERY == 0:
            folder.save(model, tokenizer, out)
    folder.save(model, tokenizer, out)
    training = {"command": f"python -m ostinato.models.demo.train --steps {steps} --seed {seed}",
                "python": platform.python_version(), "torch": torch.__version__, "steps": steps,
                "tokens_seen": steps * TOKENS_PER_STEP}  # fmt: skip
    evaluate.write_card(out, split, training)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of 4,096 tokens")
    parser.add_argument("--out", type=Path, default=demo.path(), help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run(arguments.steps, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
