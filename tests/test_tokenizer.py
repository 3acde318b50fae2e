"""Text in and out of token ids: a stream equals the one-shot decode, whatever the ids; broken files are named."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream

from ostinato import ModelLoadError, ParamError
from ostinato.text_stream import ByteStream, WindowStream
from ostinato.tokenizer import Tokenizer
from small_tokenizers import byte_level, byte_tokens, metaspace, sentencepiece, without_decoder, word_piece

Build = Callable[[], tokenizers.Tokenizer]
KINDS = pytest.mark.parametrize("build", [byte_level, sentencepiece, metaspace, word_piece, without_decoder])
BEYOND = 100_000  # a model's vocab_size is often larger than its tokenizer's
BYTE_0 = 3  # the first byte token of `sentencepiece`


def streamed(tokenizer: Tokenizer, prompt: list[int], generated: list[int]) -> str:
    stream = tokenizer.text_stream(prompt)
    return "".join([stream.push(token_id) for token_id in generated]) + stream.flush()


def byte_fallback(text: str | bytes) -> list[int]:
    """The `sentencepiece` tokenizer's byte tokens."""
    return [BYTE_0 + byte for byte in (text.encode() if isinstance(text, str) else text)]


def ids_of(core: tokenizers.Tokenizer) -> st.SearchStrategy[list[int]]:
    known = st.integers(0, core.get_vocab_size() - 1)
    return st.lists(known | st.sampled_from([-1, BEYOND, 1 << 40]), max_size=40)


# ------------------------------------------------------------------------------------------------- incremental text


@KINDS
@settings(max_examples=150)
@given(data=st.data())
def test_a_stream_is_the_one_shot_decode(build: Build, data: st.DataObject) -> None:
    tokenizer = Tokenizer(build())
    ids = data.draw(ids_of(build()))
    assert streamed(tokenizer, [], ids) == tokenizer.decode(ids)


@settings(max_examples=400)
@given(st.lists(st.sampled_from([b"\xf0\x9f", b"\x99\x82", b"\xe4\xbd\xa0", b"\xc3", b"\xff", b"a", b"\xed\xa0\x80"])))
def test_a_byte_level_stream_is_what_python_makes_of_the_bytes(parts: list[bytes]) -> None:
    text = b"".join(parts)
    assert streamed(Tokenizer(byte_level()), [], byte_tokens(text)) == text.decode(errors="replace")


@settings(max_examples=200)
@given(data=st.data())
def test_a_byte_level_stream_does_not_depend_on_the_prompt(data: st.DataObject) -> None:
    tokenizer = Tokenizer(byte_level())
    prompt, ids = data.draw(ids_of(byte_level())), data.draw(ids_of(byte_level()))
    assert streamed(tokenizer, prompt, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("build", [sentencepiece, metaspace, word_piece, without_decoder])
@settings(max_examples=150)
@given(data=st.data())
def test_after_a_prompt_a_stream_is_what_the_decode_of_both_has_more(build: Build, data: st.DataObject) -> None:
    tokenizer = Tokenizer(build())
    letter = build().token_to_id("a") or build().token_to_id("b")
    assert letter is not None
    prompt, ids = [*data.draw(ids_of(build())), letter], data.draw(ids_of(build()))
    assert tokenizer.decode(prompt) + streamed(tokenizer, prompt, ids) == tokenizer.decode(prompt + ids)


@given(st.text(max_size=30))
@example("日本語 🙂👩‍👩‍👧 ß\u0301")
def test_any_text_survives_encoding_and_streaming(text: str) -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode(text)
    if "<|" not in text:
        assert streamed(tokenizer, [], ids) == text


def test_a_character_is_shown_with_its_last_byte_and_not_before() -> None:
    stream = Tokenizer(byte_level()).text_stream()
    assert [stream.push(i) for i in byte_tokens("a🙂b".encode())] == ["a", "", "", "", "🙂", "b"]


def test_invalid_bytes_are_shown_at_once() -> None:
    stream = Tokenizer(byte_level()).text_stream()
    assert [stream.push(i) for i in byte_tokens(b"\xff\xffa\xf0")] == ["\ufffd", "\ufffd", "a", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_and_unknown_ids_have_no_text_and_split_no_character() -> None:
    tokenizer = Tokenizer(byte_level())
    end = byte_level().token_to_id("<|end|>")
    first, second, third, fourth = byte_tokens("🙂".encode())
    ids = [end, first, second, end, BEYOND, -1, 1 << 40, third, fourth, end]
    assert streamed(tokenizer, [], ids) == tokenizer.decode(ids) == "🙂"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|end|>\ufffd<|end|>\ufffd\ufffd<|end|>"


def test_an_added_token_that_is_not_special_is_shown() -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("a<tool call>b<|user|>")
    assert streamed(tokenizer, [], ids) == "a<tool call>b"


def test_a_leading_space_is_shown_only_after_other_text() -> None:
    tokenizer = Tokenizer(sentencepiece())
    hello = tokenizer.encode("hello", add_special_tokens=False)
    assert streamed(tokenizer, [], hello) == "hello"
    assert streamed(tokenizer, tokenizer.encode("a"), hello) == " hello"
    assert streamed(tokenizer, [1, 2, BEYOND, -1], hello) == "hello"  # a prompt without text
    assert streamed(tokenizer, [*tokenizer.encode("a"), *byte_fallback("🙂"[:1].encode()[:2])], hello) == " hello"


def test_a_run_of_byte_tokens_is_shown_when_it_ends() -> None:
    tokenizer = Tokenizer(sentencepiece())
    stream = tokenizer.text_stream(tokenizer.encode("a"))
    assert [stream.push(i) for i in byte_fallback("你")] == ["", "", ""]
    assert stream.push(tokenizer.encode("b", add_special_tokens=False)[-1]) == "你 b"


def test_one_invalid_byte_spoils_its_whole_run() -> None:
    """The reason why runs are held: tokenizers decides about a run as a whole."""
    tokenizer = Tokenizer(sentencepiece())
    run = byte_fallback("你".encode() + b"\xff")
    assert tokenizer.decode(run[:3]) == "你"
    assert streamed(tokenizer, [], run) == tokenizer.decode(run) == 4 * "\ufffd"


def test_decode_stream_is_not_the_one_shot_decode() -> None:
    """Why `text_stream` has its own: the four differences that its docstring names."""
    core = sentencepiece()
    letter = core.token_to_id("b")
    spoilt = DecodeStream(skip_special_tokens=True)
    assert [spoilt.step(core, i) for i in byte_fallback("你".encode() + b"\xff")] == [None, None, "你", None]
    with pytest.raises(Exception, match="prefix"):
        spoilt.step(core, letter)

    core = byte_level()
    invalid = DecodeStream()
    assert [invalid.step(core, i) for i in byte_tokens(100 * b"\xff")] == [None] * 100  # held, and no flush shows it
    half_a_character = byte_tokens("prompt🙂".encode())[:-1]
    assert DecodeStream(ids=half_a_character).step(core, byte_tokens("🙂".encode())[-1]) == "prompt🙂"


@pytest.mark.parametrize(("build", "kind"), [(byte_level, ByteStream), (sentencepiece, WindowStream)])
def test_pushing_a_token_is_cheap(build: Build, kind: type) -> None:
    """Typically 0.4 and 3 µs; the bound leaves room for a busy machine, not for work that grows with the text."""
    tokenizer = Tokenizer(build())
    ids = tokenizer.encode("hello ab. a b lo " * 2_000)
    stream = tokenizer.text_stream(ids)
    assert isinstance(stream, kind)
    start = time.perf_counter()
    for token_id in ids:
        stream.push(token_id)
    assert (time.perf_counter() - start) / len(ids) < 50e-6


# ------------------------------------------------------------------------------------------------- encoding, loading


def save(folder: Path, core: tokenizers.Tokenizer | None = None, **config: Any) -> Path:
    (core or byte_level()).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer is not None
    return tokenizer


def test_a_folder_without_tokenizer_files_has_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.load(tmp_path) is None


def test_encoding_adds_the_checkpoints_special_tokens_unless_told_not_to(tmp_path: Path) -> None:
    tokenizer = load(save(tmp_path, sentencepiece()))
    assert tokenizer.encode("a") == [1, *tokenizer.encode("a", add_special_tokens=False)]


def test_truncation_and_padding_stored_in_the_file_are_ignored(tmp_path: Path) -> None:
    core = tokenizers.Tokenizer.from_str(byte_level().to_str())
    core.enable_truncation(2)
    core.enable_padding(length=16)
    assert len(load(save(tmp_path, core)).encode("hello world, hello you")) > 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"version":"1.0"}', b'{"model":{"type":"BPE"}}'])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_file_that_makes_tokenizers_panic_is_named(tmp_path: Path) -> None:
    state = json.loads(byte_level().to_str())
    assert state["model"]["merges"]
    state["model"]["continuing_subword_prefix"] = 16 * "#"
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.load(tmp_path)


def test_text_without_a_token_for_it_is_a_parameter_error() -> None:
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>"))
    with pytest.raises(ParamError, match="cannot encode the text"):
        Tokenizer(core).encode("b")


def test_a_mutated_tokenizer_file_loads_or_is_named(tmp_path: Path) -> None:
    whole = byte_level().to_str()
    for cut in range(0, len(whole), len(whole) // 40):
        (tmp_path / "tokenizer.json").write_text(whole[:cut] + whole[cut + 40 :])
        try:
            load(tmp_path).text_stream().push(5)
        except ModelLoadError as error:
            assert "tokenizer.json" in str(error)


@pytest.mark.parametrize("text", [None, b"bytes", 3, ["list"]])
def test_only_text_can_be_encoded(text: Any) -> None:
    with pytest.raises(ParamError, match="must be a str"):
        Tokenizer(byte_level()).encode(text)


def test_half_a_surrogate_pair_cannot_be_encoded() -> None:
    with pytest.raises(ParamError, match="surrogate pair at character 1"):
        Tokenizer(byte_level()).encode("a\ud83d")


def test_a_folder_with_slow_files_is_read_by_transformers(tmp_path: Path) -> None:
    byte_level().model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load(tmp_path)
    assert streamed(tokenizer, [], tokenizer.encode("hello 🙂 world")) == "hello 🙂 world"


def test_slow_files_that_transformers_cannot_read_are_an_error_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(ModelLoadError, match=tmp_path.name):
        Tokenizer.load(tmp_path)


def test_code_in_a_checkpoint_is_not_imported(tmp_path: Path) -> None:
    byte_level().model.save(str(tmp_path))
    (tmp_path / "canary.py").write_text("raise SystemExit('the canary sang')")
    config = {"model_type": "gpt2", "auto_map": {"AutoTokenizer": ["canary.Canary", None]}}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(config))
    try:
        Tokenizer.load(tmp_path)
    except ModelLoadError as error:
        assert "canary sang" not in str(error)
