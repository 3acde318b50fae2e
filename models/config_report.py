"""What a family made of a config.json: the keys it read, the defaults it took, and the keys that nothing looked for.

Knows no family: the reads are watched. A section that a family takes out of one object and puts into another is known
again because it is the same object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Path = tuple[str, ...]
"""The keys that lead to a value."""

BOOKKEEPING = frozenset(
    {
        "_name_or_path", "_sliding_window_pattern", "attention_dropout", "attention_probs_dropout_prob",
        "attn_impl", "attn_implementation", "attn_pdrop", "auto_map", "bos_token_id", "chunk_size_feed_forward",
        "classifier_dropout", "embd_pdrop", "emb_pdrop", "gradient_checkpointing", "hidden_dropout",
        "hidden_dropout_prob", "id2label", "init_device", "initializer_range", "is_decoder",
        "is_encoder_decoder", "label2id", "learned_pos_emb",
        "model_type", "n_ctx", "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
        "pretraining_tp", "problem_type", "reorder_and_upcast_attn", "resid_pdrop", "return_dict",
        "router_aux_loss_coef", "router_jitter_noise",
        "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
        "task_specific_params", "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Keys about training, the file itself or how transformers runs: that nothing reads them surprises nobody."""

_ROPE_KIND = {"rope_type", "type"}
"""Two names of one thing: the older is looked for so that the newer one gets its default."""
_MAX_DEPTH = 8  # of sections: far more than any family looks into


@dataclass(frozen=True)
class ConfigReport:
    """Keys by what became of them; a nested one is ``section.key``.

    ``read`` are there and were looked for; ``defaults`` are absent, with the value taken; ``absent`` were looked for
    and have no default of their own (the family decides, or their absence is the point). ``ignored`` and
    ``bookkeeping`` are there, and nothing looked for them; None where reading ended early, with a refusal.
    """

    read: tuple[str, ...]
    defaults: dict[str, object]
    absent: tuple[str, ...]
    ignored: tuple[str, ...] | None
    bookkeeping: tuple[str, ...] | None


class Reads:
    """The reads of one file, ``values``; ``note`` is for `config_reads.watching`."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self._sections = {id(section): path for path, section in _sections((), values)}
        self._entered: set[Path] = {()}
        self._found: set[Path] = set()
        self._absent: dict[Path, object] = {}

    def note(self, values: Mapping[str, object], place: str, key: str, default: object) -> None:
        """Something looked for ``key``; a value that the file has not, but a changed copy, does not count."""
        file, *sections = place.split(": ")
        if file != "config.json":
            return
        section = self._sections.get(id(values), tuple(sections))
        self._entered.add(section)
        path = (*section, key)
        own = self._at(path)
        if own is not None:
            if values.get(key) is own:
                self._found.add(path)
        elif values.get(key) is None and self._absent.get(path) is None:
            self._absent[path] = default

    def report(self, complete: bool) -> ConfigReport:
        """All reads up to now; ``complete``: there will be no more."""
        absent = {path: default for path, default in sorted(self._absent.items()) if not self._given_elsewhere(path)}
        unread = sorted(self._unread((), self._values)) if complete else None
        return ConfigReport(
            read=tuple(sorted(map(".".join, self._found))),
            defaults={".".join(path): default for path, default in absent.items() if default is not None},
            absent=tuple(".".join(path) for path, default in absent.items() if default is None),
            ignored=None if unread is None else tuple(name for name in unread if not _is_bookkeeping(name)),
            bookkeeping=None if unread is None else tuple(name for name in unread if _is_bookkeeping(name)),
        )

    def _given_elsewhere(self, path: Path) -> bool:
        """Whether what is absent at ``path`` has its value, or its default, from another place or name."""
        names = {found[-1] for found in self._found}
        if path[-1] in _ROPE_KIND:
            return path[-1] == "type" or not names.isdisjoint(_ROPE_KIND)
        return path[-1] in names or (len(path) > 1 and path[-1:] in self._absent)

    def _at(self, path: Path) -> object:
        value: object = self._values
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def _unread(self, path: Path, values: Mapping[str, object]) -> Iterator[str]:
        """What is there and was not looked for; of a section that nothing entered, its own name alone."""
        for key, value in values.items():
            here = (*path, key)
            if isinstance(value, dict) and here in self._entered:
                yield from self._unread(here, value)
            elif value is not None and here not in self._found:
                yield ".".join(here)


def _is_bookkeeping(name: str) -> bool:
    return name.rpartition(".")[2] in BOOKKEEPING


def _sections(path: Path, values: Mapping[str, object]) -> Iterator[tuple[Path, Mapping[str, object]]]:
    """``values`` and every object in it, by the keys that lead there."""
    yield path, values
    for key, value in values.items():
        if isinstance(value, dict) and len(path) < _MAX_DEPTH:
            yield from _sections((*path, key), value)
