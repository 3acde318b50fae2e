"""The tokenizer: byte-level BPE, trained on the training files; and files as token ids.

Byte-level means every string has ids and comes back unchanged. `<|endoftext|>` (id 0) stands before every file and is
the model's eos. Training is deterministic, and an existing tokenizer.json is kept by the training script, because
other people's tests know its ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ostinato.models.demo.corpus import SourceFile

VOCAB_SIZE = 3072
EOS_TOKEN = "<|endoftext|>"
EOS_ID = 0

TokenIds = npt.NDArray[np.int64]  # [num_tokens]


def train_tokenizer(files: Iterable[SourceFile], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A BPE tokenizer of `vocab_size` ids (Sennrich et al. 2016) on bytes, in GPT-2's words (Radford et al. 2019)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.text for file in files), trainer)
    return tokenizer


def encode_files(tokenizer: Tokenizer, files: Sequence[SourceFile]) -> list[TokenIds]:
    """Each file's ids [num_tokens], int64, without eos."""
    return [np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch([f.text for f in files])]
