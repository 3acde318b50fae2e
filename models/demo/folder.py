"""The checkpoint folder: the architecture as a config, and the files in the standard layout.

Knows what the folder holds; does not know how the weights were found.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from ostinato.models.demo.tokens import EOS_ID, EOS_TOKEN, VOCAB_SIZE

MAX_LENGTH = 1024  # tokens
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def architecture() -> Qwen3Config:
    """Qwen3 with 3.5M parameters: 4 layers of width 256, 4 query heads on 2 KV heads, tied embeddings."""
    return Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `FILES` into `folder`, weights as bf16. Each file is replaced whole: a reader never meets half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        fresh = Path(name)
        half = copy.deepcopy(model).to(torch.bfloat16)
        half.generation_config = GenerationConfig(
            do_sample=True, temperature=0.7, top_p=0.95, max_new_tokens=128, eos_token_id=EOS_ID, pad_token_id=EOS_ID
        )
        half.save_pretrained(fresh)
        tokenizer.save(str(fresh / "tokenizer.json"))
        write_json(fresh / "tokenizer_config.json", tokenizer_config())
        (fresh / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
        for file in FILES:
            (fresh / file).replace(folder / file)


def load(folder: Path) -> tuple[Qwen3ForCausalLM, Tokenizer]:
    """The folder's model in float32 and evaluation mode, and its tokenizer."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def tokenizer_config() -> dict[str, object]:
    """What transformers needs beside tokenizer.json; no bos token, no chat template: it is a model of plain text."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "pad_token": EOS_TOKEN,
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }


def write_json(path: Path, content: object) -> None:
    """Writes readable JSON ending with a newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
