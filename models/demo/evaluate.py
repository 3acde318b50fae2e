"""Bits per byte on held-out files: of the trained model, and of the 4-gram model counted on the same training files.

    python -m ostinato.models.demo.evaluate             # measures the shipped folder again

Bits per byte = −Σ log2 p of the files' tokens / UTF-8 bytes of the files. Both models predict every token of every
file, in order, the first one after eos; both use the same ids, files and bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Qwen3ForCausalLM

from ostinato.models import demo
from ostinato.models.demo import corpus, folder, ngram, tokens
from ostinato.models.demo.tokens import TokenIds

STRIDE = folder.MAX_LENGTH // 2  # tokens: past a file's first window, each token has at least this much context


@torch.inference_mode()
def model_bits(model: Qwen3ForCausalLM, document: TokenIds) -> float:
    """−Σ log2 p of a document's tokens [num_tokens], in windows of `MAX_LENGTH` that overlap; no token is skipped."""
    ids = torch.from_numpy(np.concatenate([[tokens.EOS_ID], document]))[None]
    nats, scored = 0.0, 0  # the first `scored` tokens of the document are done
    for start in range(0, len(document), STRIDE):
        end = min(start + folder.MAX_LENGTH, len(document))
        if end == scored:
            break
        logits = model(input_ids=ids[:, start:end], use_cache=False).logits[0, scored - start :]
        nats += nn.functional.cross_entropy(logits, ids[0, scored + 1 : end + 1], reduction="sum").item()
        scored = end
    return nats / float(np.log(2))


def ngram_bits(model: ngram.NgramModel, document: TokenIds) -> float:
    """−Σ log2 p of a document's tokens [num_tokens]."""
    return float(-model.log2_probabilities(document).sum())


def bits_per_byte(bits: Sequence[float], files: Sequence[corpus.SourceFile]) -> float:
    """Total bits over total UTF-8 bytes."""
    return sum(bits) / sum(file.num_bytes for file in files)


def sizes(files: Sequence[corpus.SourceFile], documents: Sequence[TokenIds]) -> dict[str, int]:
    """Files, UTF-8 bytes and tokens of one side of the split."""
    return {"files": len(files), "bytes": sum(file.num_bytes for file in files), "tokens": sum(map(len, documents))}


def measure(out: Path, split: corpus.Split) -> dict[str, object]:
    """Corpus sizes and both models' bits per byte on the held-out files; `out` holds the model and the tokenizer."""
    model, tokenizer = folder.load(out)
    train, held_out = tokens.encode_files(tokenizer, split.train), tokens.encode_files(tokenizer, split.held_out)
    baseline = ngram.NgramModel(train, tokenizer.get_vocab_size())
    return {
        "train": sizes(split.train, train),
        "held_out": sizes(split.held_out, held_out),
        "held_out_bits_per_byte": {
            "model": round(bits_per_byte([model_bits(model, d) for d in held_out], split.held_out), 4),
            "kneser_ney_4gram": round(bits_per_byte([ngram_bits(baseline, d) for d in held_out], split.held_out), 4),
        },
    }


def write_card(out: Path, split: corpus.Split, training: dict[str, object]) -> None:
    """Measures, prints, and writes model_card.json into `out`."""
    measured = measure(out, split)
    card = {"text": "CPython's standard library (PSF licence); see corpus.py", "training": training, **measured}
    folder.write_json(out / "model_card.json", card)
    for name, value in measured.items():
        print(f"{name}: {value}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=demo.path())
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    split = corpus.split(corpus.read_files(corpus.stdlib_root()))
    for name, value in measure(arguments.folder, split).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
