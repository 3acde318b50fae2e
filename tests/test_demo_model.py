"""The demo model: its folder, the split of its text, its tokenizer, its baseline, its training and its quality."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from ostinato.models import demo
from ostinato.models.demo import corpus, evaluate, folder, ngram, tokens, train

MAX_BYTES = 8_000_000
# Held-out files that every supported Python has; their first 3,000 characters are enough text to tell models apart.
SAMPLE = ("fnmatch.py", "operator.py", "pprint.py", "statistics.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo.path() / "tokenizer.json"))


@pytest.fixture(scope="module")
def card() -> dict[str, dict[str, float]]:
    return json.loads((demo.path() / "model_card.json").read_text(encoding="utf-8"))


def test_folder_is_complete_and_at_most_eight_megabytes() -> None:
    files = [path for path in demo.path().iterdir() if path.is_file()]
    assert {path.name for path in files} >= {*folder.FILES, "model_card.json"}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_weights_are_bf16_in_the_layout_of_the_architecture() -> None:
    with torch.device("meta"):
        expected = Qwen3ForCausalLM(folder.architecture()).state_dict()
    del expected["lm_head.weight"]  # tied: stored once, as the embedding
    with safe_open(demo.path() / "model.safetensors", framework="pt") as weights:
        stored = {name: weights.get_slice(name) for name in list(weights.keys())}
        assert {name: part.get_shape() for name, part in stored.items()} == {
            name: list(tensor.shape) for name, tensor in expected.items()
        }
        assert {part.get_dtype() for part in stored.values()} == {"BF16"}


def test_config_is_the_architecture_and_ends_at_the_tokenizers_eos(tokenizer: Tokenizer) -> None:
    config = json.loads((demo.path() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["eos_token_id"] == tokenizer.token_to_id(tokens.EOS_TOKEN) == tokens.EOS_ID
    assert config["max_position_embeddings"] == folder.MAX_LENGTH


@given(text=st.text())
def test_tokenizer_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_split_is_a_function_of_the_name_alone() -> None:
    files = [corpus.SourceFile(f"package/module_{i}.py", "x = 1\n") for i in range(500)]
    forwards, backwards = corpus.split(files), corpus.split(reversed(files))
    held_out, train_side = {f.name for f in forwards.held_out}, {f.name for f in forwards.train}
    assert held_out == {f.name for f in backwards.held_out}
    assert not held_out & train_side
    assert len(held_out) + len(train_side) == 500
    assert 10 <= len(held_out) <= 60
    assert [name for name in (*SAMPLE, "os.py", "json/decoder.py") if corpus.is_held_out(name)] == list(SAMPLE)


def test_corpus_leaves_out_tests_tables_and_other_peoples_code(tmp_path: Path) -> None:
    names = ("ast.py", "json/tool.py", "test/support.py", "json/tests/a.py", "site-packages/s.py", "encodings/cp437.py")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    assert [file.name for file in corpus.read_files(tmp_path)] == ["ast.py", "json/tool.py"]


@pytest.fixture(scope="module")
def small_documents() -> list[tokens.TokenIds]:
    """Three documents of a skewed random language of 12 tokens."""
    rng = np.random.default_rng(0)
    return [np.minimum(rng.geometric(0.25, size=size), 11) for size in (40, 300, 7)]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngram_probabilities_sum_to_one(order: int, small_documents: list[tokens.TokenIds]) -> None:
    model = ngram.NgramModel(small_documents, 12, order)
    for context in ([1, 1, 1], [0, 0, 0], [2, 1, 3], [11, 11, 10]):  # frequent, start of file, rare, never seen
        distribution = model.distribution(context[: order - 1])
        assert distribution.min() > 0
        assert distribution.sum() == pytest.approx(1.0, abs=1e-12)


def test_ngram_probabilities_are_those_of_the_formula(small_documents: list[tokens.TokenIds]) -> None:
    model = ngram.NgramModel(small_documents, 12, order=3)
    tables: dict[int, Counter[tuple[int, ...]]] = {3: Counter()}
    for document in small_documents:
        padded = [0, 0, *document.tolist()]
        tables[3].update(zip(padded, padded[1:], padded[2:], strict=False))
    for n in (2, 1):
        tables[n] = Counter(gram[1:] for gram in tables[n + 1])

    def probability(gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / 12
        table, discounts = tables[len(gram)], model.orders[len(gram) - 1].discounts
        followers = [count for other, count in table.items() if other[:-1] == gram[:-1]]
        if not followers:
            return probability(gram[1:])
        left_over = sum(discounts[min(count, 3)] for count in followers)
        return float(table[gram] - discounts[min(table[gram], 3)] + left_over * probability(gram[1:])) / sum(followers)

    test = np.array([1, 2, 1, 1, 11, 5, 9, 9])
    padded = [0, 0, *test.tolist()]
    expected = [math.log2(probability(gram)) for gram in zip(padded, padded[1:], padded[2:], strict=False)]
    assert model.log2_probabilities(test) == pytest.approx(expected)


@pytest.mark.parametrize("length", [1, 511, 512, 513, 1024, 1025, 1536, 1537, 4000])
def test_every_token_is_scored_exactly_once(length: int) -> None:
    def uniform(input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert input_ids.shape[1] <= folder.MAX_LENGTH
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 16))

    bits = evaluate.model_bits(uniform, np.arange(length) % 16)  # type: ignore[arg-type]
    assert bits == pytest.approx(4 * length)


def test_windows_are_the_files_with_eos_before_each() -> None:
    documents = [np.full(30, i) for i in (1, 2, 3)]
    source = train.windows(documents, 10, np.random.default_rng(0))
    epoch = np.stack([next(source) for _ in range(9)])
    assert epoch.shape == (9, 11)
    assert Counter(epoch[:, :-1].flatten().tolist())[tokens.EOS_ID] == 3
    assert all(len(set(row.tolist()) - {tokens.EOS_ID}) <= 2 for row in epoch)


def test_a_few_steps_lower_the_loss_and_the_folder_loads_again(tmp_path: Path) -> None:
    for i in range(4):
        lines = [f"def name_{j}(value):\n    return value + {j}\n\n\n" for j in range(60)]
        (tmp_path / f"module_{i}.py").write_text("".join(lines))
    files = list(corpus.read_files(tmp_path))
    tokenizer = tokens.train_tokenizer(files, vocab_size=300)
    documents = tokens.encode_files(tokenizer, files)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)
    )  # fmt: skip
    losses = [loss for _, loss in train.train(model, documents, steps=40, seed=0)]
    assert losses[0] == pytest.approx(math.log(300), abs=0.2)
    assert losses[-1] < losses[0] - 1.0

    folder.save(model, tokenizer, tmp_path / "out")
    again, _ = folder.load(tmp_path / "out")
    expected = {name: tensor.to(torch.bfloat16).float() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_shipped_model_beats_the_4gram_model(card: dict[str, dict[str, float]]) -> None:
    recorded = card["held_out_bits_per_byte"]
    assert recorded["model"] < recorded["kneser_ney_4gram"]

    files = [
        corpus.SourceFile(name, (corpus.stdlib_root() / name).read_text(encoding="utf-8")[:3000]) for name in SAMPLE
    ]
    assert all(corpus.is_held_out(file.name) and len(file.text) == 3000 for file in files)
    model, tokenizer = folder.load(demo.path())
    bits = [evaluate.model_bits(model, document) for document in tokens.encode_files(tokenizer, files)]
    assert evaluate.bits_per_byte(bits, files) < recorded["kneser_ney_4gram"]
