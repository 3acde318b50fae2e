"""SamplingParams: everything accepted is valid and plain Python; everything else is a ParamError with the numbers."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.layers.errors import ParamError
from ostinato.sampling_params import SamplingParams


def test_defaults() -> None:
    params = SamplingParams()
    assert dataclasses.asdict(params) == {
        "n": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": None,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": (),
        "allowed_token_ids": None,
        "bad_words": (),
        "logits_processors": (),
        "logprobs": None,
        "prompt_logprobs": None,
        "structured_outputs": None,
        "max_tokens": 64,
        "min_tokens": 0,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "cache_salt": None,
        "enable_prefix_caching": True,
    }


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("temperature", 0, 0.0),
        ("temperature", 1e-6, 1e-6),
        ("temperature", 1e6, 1e6),
        ("temperature", np.float32(0.5), 0.5),
        ("top_k", -1, 0),
        ("top_k", 0, 0),
        ("top_k", np.int64(40), 40),
        ("top_p", 1, 1.0),
        ("top_p", np.float64(0.9), 0.9),
        ("min_p", 0, 0.0),
        ("min_p", 1, 1.0),
        ("seed", None, None),
        ("seed", -(2**63), -(2**63)),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("seed", np.uint64(2**64 - 1), 2**64 - 1),
        ("n", np.int64(16), 16),
        ("repetition_penalty", 0.01, 0.01),
        ("repetition_penalty", 100, 100.0),
        ("presence_penalty", -2, -2.0),
        ("frequency_penalty", np.float32(2), 2.0),
        ("logit_bias", {7: 1, np.int64(3): -100}, ((3, -100.0), (7, 1.0))),
        ("logit_bias", None, ()),
        ("logit_bias", dict.fromkeys(range(300), 1.0), tuple((token, 1.0) for token in range(300))),
        ("allowed_token_ids", [3, np.int32(1)], (3, 1)),
        ("logits_processors", [len], (len,)),
        ("logprobs", 20, 20),
        ("bad_words", ["a"] * 128, ("a",) * 128),
        ("max_tokens", 1, 1),
        ("max_tokens", 2**31 - 1, 2**31 - 1),
        ("min_tokens", 64, 64),
        ("stop", "\n", ("\n",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", ("s",) * 16, ("s",) * 16),
        ("stop", "x" * 1000, ("x" * 1000,)),
        ("stop_token_ids", [np.int32(7), 0], (7, 0)),
        ("stop_token_ids", list(range(31)), tuple(range(31))),
        ("ignore_eos", True, True),
        ("cache_salt", "tenant é", "tenant é"),
        ("enable_prefix_caching", False, False),
    ],
)
def test_a_valid_value_is_stored_as_plain_python(name: str, value: Any, stored: Any) -> None:
    got = getattr(SamplingParams(**{name: value}), name)
    assert got == stored
    assert type(got) is type(stored)
    if isinstance(got, tuple):
        assert all(type(item) in (int, str, tuple) or item is len for item in got)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, "temperature must be 0 (greedy) or from 1e-06 to 1e+06, got -0.1"),
        ("temperature", 1e-7, "got 1e-07"),
        ("temperature", 1e7, "got 10000000.0"),
        ("temperature", float("nan"), "temperature must be finite, got nan"),
        ("temperature", float("inf"), "temperature must be finite, got inf"),
        ("temperature", 10**400, "temperature must be finite"),
        ("temperature", True, "temperature must be a number, got True (bool)"),
        ("temperature", "1", "temperature must be a number, got '1' (str)"),
        ("temperature", None, "temperature must be a number, got None"),
        ("temperature", 1j, "temperature must be a number"),
        ("top_k", -2, "top_k must be from -1 to 2147483647, got -2"),
        ("top_k", 2**31, "got 2147483648"),
        ("top_k", 1.0, "top_k must be an integer, got 1.0 (float)"),
        ("top_k", False, "top_k must be an integer, got False (bool)"),
        ("top_k", np.bool_(True), "top_k must be an integer"),
        ("top_p", 0, "top_p must be in (0, 1], got 0"),
        ("top_p", 1.5, "top_p must be in (0, 1], got 1.5"),
        ("top_p", np.float32("nan"), "top_p must be finite"),
        ("min_p", -1e-9, "min_p must be in [0, 1], got -1e-09"),
        ("min_p", 2, "min_p must be in [0, 1], got 2"),
        ("seed", -(2**63) - 1, "seed must be from -9223372036854775808 to 18446744073709551615"),
        ("seed", 2**64, "got 18446744073709551616"),
        ("seed", 0.5, "seed must be an integer"),
        ("n", 0, "n must be from 1 to 16, got 0"),
        ("n", 17, "n must be from 1 to 16, got 17"),
        ("n", True, "n must be an integer, got True"),
        ("repetition_penalty", 0, "repetition_penalty must be from 0.01 to 100, got 0 (int)"),
        ("repetition_penalty", 101, "repetition_penalty must be from 0.01 to 100"),
        ("repetition_penalty", float("nan"), "repetition_penalty must be finite"),
        ("presence_penalty", 2.1, "presence_penalty must be from -2 to 2, got 2.1"),
        ("frequency_penalty", "1", "frequency_penalty must be a number"),
        ("logit_bias", {1: 101}, "logit_bias must be from -100 to 100, got 101"),
        ("logit_bias", {1.0: 1}, "logit_bias must be an integer, got 1.0"),
        ("logit_bias", {"1": 1}, "logit_bias must be an integer, got '1'"),
        ("logit_bias", {-1: 1}, "logit_bias must be from 0 to 2147483647, got -1"),
        ("logit_bias", dict.fromkeys(range(301), 1), "logit_bias may have 300 items, got 301"),
        ("logit_bias", [1], "logit_bias must map token ids to numbers"),
        ("allowed_token_ids", [], "allowed_token_ids has no items"),
        ("allowed_token_ids", range(2**20 + 1), "allowed_token_ids may have 1,048,576 items, got 1,048,577"),
        ("allowed_token_ids", [-1], "allowed_token_ids must be from 0"),
        ("bad_words", "word", "bad_words must be a list or a tuple"),
        ("bad_words", [""], "bad_words must be a string of 1 to 1,000 characters"),
        ("bad_words", ["a"] * 129, "bad_words may have 128 items, got 129"),
        ("logits_processors", [3], "logits_processors must be callable, got 3"),
        ("logits_processors", [len] * 9, "logits_processors may have 8 items, got 9"),
        ("logits_processors", len, "logits_processors must be a list or a tuple"),
        ("logprobs", 21, "logprobs must be from 0 to 20, got 21"),
        ("include_stop_str_in_output", 1, "include_stop_str_in_output must be True or False"),
        ("skip_special_tokens", None, "skip_special_tokens must be True or False"),
        ("max_tokens", 0, "max_tokens must be from 1 to 2147483647, got 0"),
        ("min_tokens", -1, "min_tokens must be from 0"),
        ("min_tokens", 65, "min_tokens is 65, above max_tokens, which is 64"),
        ("stop", "", "stop must be a string of 1 to 1,000 characters, got ''"),
        ("stop", "x" * 1001, "stop must be a string of 1 to 1,000 characters"),
        ("stop", ["s"] * 17, "stop may have 16 items, got 17"),
        ("stop", ["a", 1], "stop must be a string of 1 to 1,000 characters, got 1 (int)"),
        ("stop", b"a", "stop must be a list or a tuple"),
        ("stop", {"a"}, "stop must be a list or a tuple"),
        ("stop", None, "stop must be a list or a tuple, got None"),
        ("stop_token_ids", 5, "stop_token_ids must be a list or a tuple, got 5"),
        ("stop_token_ids", [-1], "stop_token_ids must be from 0 to 2147483647, got -1"),
        ("stop_token_ids", [True], "stop_token_ids must be an integer, got True"),
        ("stop_token_ids", [0] * 32, "stop_token_ids may have 31 items, got 32"),
        ("ignore_eos", 1, "ignore_eos must be True or False, got 1 (int)"),
        ("cache_salt", "", "cache_salt must be a string of 1 to 1,000 characters"),
        ("cache_salt", "\ud800", "cache_salt must be encodable as UTF-8"),
        ("cache_salt", b"salt", "cache_salt must be a string"),
        ("enable_prefix_caching", None, "enable_prefix_caching must be True or False"),
    ],
)
def test_an_invalid_value_is_named_with_its_numbers(name: str, value: Any, message: str) -> None:
    with pytest.raises(ParamError) as caught:
        SamplingParams(**{name: value})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_value_that_cannot_be_printed_is_still_a_param_error() -> None:
    with pytest.raises(ParamError, match="max_tokens must be from 1 to 2147483647, got a value that cannot be printed"):
        SamplingParams(max_tokens=10**5000)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ParamError, match=r"no parameter 'temprature'; did you mean 'temperature'\?"):
        SamplingParams(temprature=1.0)  # type: ignore[arg-type]
    with pytest.raises(ParamError, match="no parameter 'zzz'; known are n, temperature, top_k, "):
        SamplingParams(zzz=1)  # type: ignore[arg-type]


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        SamplingParams(0.7)  # type: ignore[misc]


def test_it_is_frozen_hashable_and_copyable() -> None:
    params = SamplingParams(temperature=0.5, stop=["a"], stop_token_ids=[3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]
    assert params == SamplingParams(temperature=0.5, stop="a", stop_token_ids=(3,))
    assert len({params, copy.deepcopy(params), pickle.loads(pickle.dumps(params))}) == 1
    assert dataclasses.replace(params, temperature=0).greedy
    with pytest.raises(ParamError, match="n is 2 with temperature 0"):
        dataclasses.replace(params, temperature=0, n=2)
    assert not params.greedy


def test_zero_temperature_is_greedy_also_when_negative_zero() -> None:
    assert SamplingParams(temperature=-0.0).greedy
    assert str(SamplingParams(temperature=-0.0).temperature) == "0.0"


numbers = st.integers() | st.floats() | st.booleans() | st.fractions() | st.complex_numbers()
anything = numbers | st.none() | st.text(max_size=3) | st.binary(max_size=3) | st.lists(numbers | st.text(), max_size=3)
names = st.sampled_from([field.name for field in dataclasses.fields(SamplingParams)]) | st.text(max_size=8)


@settings(max_examples=300)
@given(st.dictionaries(names, anything, max_size=4))
def test_fuzz_the_only_error_is_param_error(options: dict[str, Any]) -> None:
    try:
        params = SamplingParams(**options)
    except ParamError:
        return
    assert params == SamplingParams(**dataclasses.asdict(params))  # what was accepted is accepted again, unchanged
