"""From what a caller asks for to a ``Request``: the last check before it is queued. Touches no other request."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property

from ostinato.bad_words import token_sequences
from ostinato.grammar_compiler import GrammarCompiler
from ostinato.grammar_mask import GrammarMask
from ostinato.layers.errors import ParamError
from ostinato.output_processor import OutputProcessor
from ostinato.plan import Plan
from ostinato.prompts import CheckedPrompt
from ostinato.request import Request
from ostinato.sampling_buffers import MAX_BLOCKED_IDS, stop_ids
from ostinato.sampling_params import SamplingParams
from ostinato.token_masks import ListedTokens, TokenMask
from ostinato.tokenizer import Tokenizer


class RequestMaker:
    """Numbers one engine's requests, gives the unseeded ones their seed, and checks what depends on the model."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer | None, eos_token_ids: frozenset[int]) -> None:
        self._vocab_size = plan.spec.vocab_size
        self._engine_seed = plan.config.seed
        self._tokenizer = tokenizer
        self._eos = eos_token_ids
        self._made = 0

    def prepare(self, params: SamplingParams) -> None:
        """Do beforehand what takes time, so that ``make`` keeps nobody waiting: compile the form of a text."""
        if params.structured_outputs is not None:
            self._grammars.matcher(params.structured_outputs)

    def make(self, prompt: CheckedPrompt, params: SamplingParams) -> tuple[Request, OutputProcessor]:
        """The request and what will make its text; of ``n`` sequences the first, which knows the others.

        ``ParamError`` names the parameter that cannot be.
        """
        self._check_ids(params)
        seed, listed = self._seed(params, self._made), self._listed(params)
        request, processor = self._one(prompt, params, seed, listed)
        for index in range(1, params.n):
            own = params if params.prompt_logprobs is None else replace(params, prompt_logprobs=None)
            follower, its = self._one(prompt, own, (seed + index) % (1 << 64), listed, index)
            follower.leader = request
            request.followers.append(follower)
            processor.group.append(its)
        return request, processor

    def _one(
        self, prompt: CheckedPrompt, params: SamplingParams, seed: int, listed: TokenMask | None, index: int = 0
    ) -> tuple[Request, OutputProcessor]:
        mask = self._mask(params, len(prompt.token_ids), listed)
        request = Request(self._made, prompt.token_ids, params, seed, self._eos, mask)
        self._made += 1
        self._check_stops(request)
        return request, OutputProcessor(self._tokenizer, request, prompt.text, index)

    def _seed(self, params: SamplingParams, number: int) -> int:
        """64 bits; without one of its own, from the engine's seed and the request's number: equal prompts differ."""
        if params.seed is not None:
            return params.seed % (1 << 64)
        drawn = hashlib.blake2b(f"{self._engine_seed}:{number}".encode(), digest_size=8)
        return int.from_bytes(drawn.digest(), "little")

    def _check_ids(self, params: SamplingParams) -> None:
        """Every id is one of the model's: a larger one would be written beyond the end of its row."""
        given = {
            "stop_token_ids": params.stop_token_ids,
            "logit_bias": [token for token, _ in params.logit_bias],
            "allowed_token_ids": params.allowed_token_ids or (),
        }
        for name, ids in given.items():
            if (largest := max(ids, default=0)) >= self._vocab_size:
                raise ParamError(
                    f"{name}: {largest} is no token; the model's vocabulary is 0 to {self._vocab_size - 1}"
                )

    def _mask(self, params: SamplingParams, num_prompt_tokens: int, listed: TokenMask | None) -> TokenMask | None:
        if params.structured_outputs is None:
            return listed
        matcher = self._grammars.matcher(params.structured_outputs)
        return GrammarMask(matcher, num_prompt_tokens, self._vocab_size, listed)

    def _listed(self, params: SamplingParams) -> TokenMask | None:
        if params.allowed_token_ids is None and not params.bad_words:
            return None
        words = token_sequences(self._tokenizer, params.bad_words, self._vocab_size)
        mask = ListedTokens(self._vocab_size, params.allowed_token_ids, words)
        if not mask.any_allowed:
            raise ParamError("bad_words: they leave no token that may be drawn")
        return mask

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        if self._tokenizer is None:
            raise ParamError("structured_outputs: this checkpoint has no tokenizer, so there is no text")
        return GrammarCompiler(self._tokenizer.to_json(), self._vocab_size, self._eos)

    def _check_stops(self, request: Request) -> None:
        if request.params.stop and self._tokenizer is None:
            raise ParamError("stop: this checkpoint has no tokenizer, so there is no text to look in")
        held_back = len(stop_ids(request))
        if request.params.min_tokens and held_back > MAX_BLOCKED_IDS:
            raise ParamError(f"min_tokens: can hold back {MAX_BLOCKED_IDS} stop ids, the request has {held_back}")
