"""From tokens to outputs: deltas concatenate to the text, which ends before the stop string that is complete first."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato import NonFiniteLogits, RequestOutput, SamplingParams, StreamDelta
from ostinato.output_processor import OutputProcessor
from ostinato.outputs import FinishReason, StopReason
from ostinato.request import Request, RequestStatus
from ostinato.stop_strings import StopStrings
from ostinato.tokenizer import Tokenizer
from small_tokenizers import byte_level, byte_tokens, sentencepiece

TOKENIZER = Tokenizer(byte_level())
PROMPT = [5, 6, 7]
END = byte_level().token_to_id("<|end|>")


def finish(request: Request, reason: FinishReason, cause: StopReason = None) -> None:
    """What the scheduler does."""
    if request.status is not RequestStatus.FINISHED:
        request.status, request.finish_reason, request.stop_reason = RequestStatus.FINISHED, reason, cause


class Run:
    """One request driven as the engine does: commit, push, finish on a match, take what is new."""

    def __init__(self, tokenizer: Tokenizer | None = TOKENIZER, prompt: str | None = None, **params: object) -> None:
        self.request = Request(3, list(PROMPT), SamplingParams(**{"max_tokens": 10_000} | params))  # type: ignore[arg-type]
        self.processor = OutputProcessor(tokenizer, self.request, prompt)
        self.deltas: list[StreamDelta] = []

    def push(self, token_id: int, reason: FinishReason | None = None, cause: StopReason = None) -> None:
        self.request.token_ids.append(token_id)
        if reason is not None:
            finish(self.request, reason, cause)
        stop = self.processor.push(token_id)
        if stop is not None:
            finish(self.request, "stop", stop)
        if self.request.status is RequestStatus.FINISHED:
            self.processor.finish()
        self.take()

    def take(self) -> None:
        delta = self.processor.take_delta()
        if delta is not None:
            self.deltas.append(delta)

    def feed(self, token_ids: list[int]) -> RequestOutput:
        """Push until a stop string ends the request, else let the last token end it."""
        for position, token_id in enumerate(token_ids, 1):
            self.push(token_id, "length" if position == len(token_ids) else None)
            if self.request.status is RequestStatus.FINISHED:
                break
        return self.processor.output()

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for delta in self.deltas for token_id in delta.token_ids]


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The oracle: (where the text ends, stop string), by plain search of the whole text."""
    found = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    return min(found)[1:] if found else None


def split(text: str, cuts: list[int]) -> list[str]:
    points = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(points)]


# -------------------------------------------------------------------------------------------------------- stop strings

FEW_LETTERS = st.text("ab\n", max_size=40)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=4)


@settings(max_examples=500)
@given(FEW_LETTERS, STOPS, st.lists(st.integers(0, 100)))
def test_a_stop_string_is_found_however_the_text_is_split(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, before, match = StopStrings(stops), 0, None
    for piece in split(text, cuts):
        match = matcher.feed(piece)
        if match is not None:
            stop, end = match
            assert first_stop(text, stops) == (before + end - len(stop), stop)
            break
        before += len(piece)
        held = [n for s in stops for n in range(len(s)) if text[:before].endswith(s[:n])]
        assert matcher.num_held == max(held, default=0)
    assert (match is None) == (first_stop(text, stops) is None)


@settings(max_examples=300)
@given(st.text("ab🙂ß\n", max_size=30), st.lists(st.text("ab🙂ß\n", min_size=1, max_size=5), max_size=3), st.booleans())
def test_the_text_ends_before_the_first_stop_string_and_no_delta_shows_more(
    text: str, stops: list[str], whole_tokens: bool
) -> None:
    ids = TOKENIZER.encode(text) if whole_tokens else byte_tokens(text.encode())
    run = Run(stop=stops)
    if not ids:
        return
    output = run.feed(ids)
    match = first_stop(text, stops)
    expected = text if match is None else text[: match[0]]
    shown = ""
    for delta in run.deltas:
        shown += delta.text
        assert expected.startswith(shown)
    assert shown == output.outputs[0].text == expected
    assert output.outputs[0].stop_reason == (match and match[1])
    assert output.outputs[0].finish_reason == ("stop" if match else "length")
    assert run.token_ids == output.outputs[0].token_ids == run.request.output_token_ids


ANY_IDS = st.lists(st.integers(0, byte_level().get_vocab_size() + 5), min_size=1, max_size=40)


@settings(max_examples=300)
@given(ANY_IDS, st.text("\ufffdae ", min_size=1, max_size=3))
def test_any_tokens_make_the_one_shot_text_up_to_the_stop_string(ids: list[int], stop: str) -> None:
    run = Run(stop=stop)
    whole = TOKENIZER.decode(ids)
    assert run.feed(ids).outputs[0].text == run.text == (whole[: whole.find(stop)] if stop in whole else whole)


def test_text_that_may_become_a_stop_string_is_held_and_no_more() -> None:
    run = Run(stop=["User:"])
    for char in "a Us Use":
        run.push(*byte_tokens(char.encode()))
    assert [delta.text for delta in run.deltas] == ["a", " ", "", "", "Us ", "", "", ""]
    run.push(*byte_tokens(b"d"), reason="length")
    assert run.text == "a Us Used"


def test_a_stop_string_that_the_last_token_completes_is_the_reason() -> None:
    output = Run(stop="ab").feed(byte_tokens(b"xab"))
    assert (output.outputs[0].text, output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (
        "x",
        "stop",
        "ab",
    )


def test_a_stop_string_in_the_flushed_rest_is_found() -> None:
    """Byte tokens are shown when their run ends, here at the request's end."""
    tokenizer = Tokenizer(sentencepiece())
    output = Run(tokenizer, stop="!").feed([3 + byte for byte in b"hi! there"])
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("hi", "!")


def test_of_two_that_end_together_the_longer_stop_string_is_found() -> None:
    assert Run(stop=["b", "ab"]).feed(byte_tokens(b"xab")).outputs[0].stop_reason == "ab"


def test_the_stop_string_that_is_complete_first_is_found() -> None:
    assert Run(stop=["abcde", "cd"]).feed(byte_tokens(b"abcdef")).outputs[0].text == "ab"


@pytest.mark.parametrize(
    ("min_tokens", "text"), [(0, "x"), (3, "x"), (4, "xab"), (5, "xab"), (6, "xabab"), (8, "xababab")]
)
def test_stop_strings_are_not_looked_for_before_min_tokens(min_tokens: int, text: str) -> None:
    assert Run(stop="ab", min_tokens=min_tokens).feed(byte_tokens(b"xababab")).outputs[0].text == text


def test_tokens_after_a_stop_string_change_nothing() -> None:
    run = Run(stop="b")
    run.feed(byte_tokens(b"ab"))
    output = run.processor.output()
    assert run.processor.push(5) is None
    assert run.processor.output() == output


# ------------------------------------------------------------------------------------------------------------ endings


def test_an_end_of_sequence_token_is_listed_and_not_shown() -> None:
    run = Run()
    run.push(*byte_tokens(b"a"))
    run.push(END, "stop")
    assert run.processor.output().outputs[0].token_ids == [*byte_tokens(b"a"), END]
    assert (run.text, run.deltas[-1].finish_reason, run.deltas[-1].stop_reason) == ("a", "stop", None)


def test_a_stop_token_is_listed_and_its_text_not_shown() -> None:
    run = Run()
    (stop,) = byte_tokens(b"b")
    run.push(*byte_tokens(b"a"))
    run.push(stop, "stop", stop)
    assert run.processor.output().outputs[0].text == "a"
    assert (run.deltas[-1].token_ids, run.deltas[-1].stop_reason) == ([stop], stop)


@pytest.mark.parametrize("reason", ["length", "abort", "error"])
def test_half_a_character_at_the_end_is_shown_as_the_one_shot_decode_does(reason: FinishReason) -> None:
    run = Run(stop="zz")
    ids = byte_tokens("az🙂".encode())[:-1]
    for token_id in ids:
        run.push(token_id)
    assert run.text == "a"
    finish(run.request, reason)
    run.processor.finish()
    run.processor.finish()
    run.take()
    assert run.text == run.processor.output().outputs[0].text == TOKENIZER.decode(ids) == "az\ufffd"
    assert run.deltas[-1].finish_reason == reason


def test_exactly_one_delta_is_the_last() -> None:
    run = Run()
    run.feed(byte_tokens(b"abc"))
    run.take()
    assert [delta.finished for delta in run.deltas] == [False, False, True]
    assert [delta.finish_reason for delta in run.deltas] == [None, None, "length"]


def test_nothing_new_is_no_delta() -> None:
    run = Run()
    assert run.processor.take_delta() is None
    run.push(*byte_tokens(b"a"))
    assert run.processor.take_delta() is None


def test_a_delta_may_hold_several_tokens() -> None:
    run = Run()
    ids = byte_tokens(b"abc")
    for token_id in ids:
        run.request.token_ids.append(token_id)
        run.processor.push(token_id)
    run.take()
    assert [(delta.text, delta.token_ids) for delta in run.deltas] == [("abc", ids)]


def test_a_request_aborted_before_its_first_token_has_an_empty_output() -> None:
    run = Run()
    finish(run.request, "abort")
    run.processor.finish()
    run.take()
    assert run.deltas == [StreamDelta(3, "", [], True, "abort", None, 0)]


def test_an_output_holds_the_request() -> None:
    run = Run(prompt="the prompt")
    run.request.num_cached_tokens = 2
    run.push(*byte_tokens(b"a"))
    finish(run.request, "error")
    run.request.error = NonFiniteLogits("at position 4")
    before = run.processor.output()
    assert (before.finished, before.outputs[0].finish_reason) == (False, None)
    run.processor.finish()
    output = run.processor.output()
    assert (output.request_id, output.prompt, output.prompt_token_ids) == (3, "the prompt", PROMPT)
    assert (output.num_cached_tokens, output.finished, output.error) == (2, True, run.request.error)
    assert output.outputs[0].finish_reason == "error"


def test_an_output_is_a_copy() -> None:
    run = Run()
    output = run.feed(byte_tokens(b"ab"))
    output.prompt_token_ids.clear()
    output.outputs[0].token_ids.clear()
    assert run.request.prompt_token_ids == PROMPT
    assert run.request.num_generated == 2


def test_without_a_tokenizer_there_are_tokens_and_no_text() -> None:
    run = Run(tokenizer=None)
    output = run.feed([1, 2, 3])
    assert (output.outputs[0].text, output.outputs[0].token_ids, run.token_ids) == ("", [1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize("stop", [(), ["\n\n", "</s>", "User:"], [n * "a" + "b" for n in range(900, 916)]])
def test_pushing_a_token_is_cheap(stop: list[str]) -> None:
    """Typically 1 to 9 µs; the bound leaves room for a busy machine, not for work that grows with text or stops."""
    run = Run(stop=stop)
    ids = TOKENIZER.encode("hello world, User aaa\n" * 500)
    run.request.token_ids += ids
    start = time.perf_counter()
    for token_id in ids:
        run.processor.push(token_id)
        run.processor.take_delta()
    assert (time.perf_counter() - start) / len(ids) < 100e-6


# What the text may keep.


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@pytest.mark.parametrize("include", [False, True])
def test_the_stop_string_is_in_the_text_where_it_was_asked_for(include: bool) -> None:
    run = Run(stop=["lo wo", "rld"], include_stop_str_in_output=include)
    (completion,) = run.feed(ids_of("hello world and more")).outputs
    assert completion.text == run.text == ("hello wo" if include else "hel")
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "lo wo")


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_special_tokens_have_text_where_they_are_not_skipped(skip: bool, include: bool) -> None:
    run = Run(skip_special_tokens=skip, include_stop_str_in_output=include)
    user = TOKENIZER._core.token_to_id("<|user|>")
    for token in [*ids_of("ok"), user, *ids_of("so")]:
        run.push(token)
    run.push(END, "stop")
    assert run.text == "ok" + ("" if skip else "<|user|>") + "so" + ("<|end|>" if include and not skip else "")
    assert run.token_ids[-1] == END


def test_the_token_that_stops_is_in_the_text_where_it_was_asked_for() -> None:
    for include in (False, True):
        run = Run(include_stop_str_in_output=include)
        *before, last = ids_of("hello world")
        for token in before:
            run.push(token)
        run.push(last, "stop", last)
        assert run.text == TOKENIZER.decode([*before, last] if include else before)


def test_a_character_across_special_tokens_decodes_as_its_stream_does() -> None:
    user = TOKENIZER._core.token_to_id("<|user|>")
    half, rest = byte_level().token_to_id("Ã"), byte_level().token_to_id("¤")  # the two bytes of "ä"
    run = Run(skip_special_tokens=False)
    run.feed([half, rest, user, half, rest])
    assert run.text == "ä<|user|>ä"
