"""Where torch.compile ends its graph and where it compiles again, over a scripted walk of batch sizes and variants.

    report = breaks(step, make_inputs, batch_sizes=(1, 2, 4, 8))

Sees what one traced call does not: breaks on later calls and in the rest of a function after a break, and
recompilations. The function is compiled apart from the host's (``subject.py``, ``dynamo_state.py``), with the backend
"eager": what Inductor makes of the graphs is not looked at here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ostinato.graphs.inspect.dynamo.break_advice import GENERAL, Advice, advice_on
from ostinato.graphs.inspect.dynamo.break_text import BreakText, parse_break
from ostinato.graphs.inspect.dynamo.dynamo_log import Record
from ostinato.graphs.inspect.dynamo.recompile_findings import recompile_findings, recompiles_by_size
from ostinato.graphs.inspect.dynamo.walk import TOOL, Walk, describe, walk
from ostinato.graphs.inspect.environment import environment
from ostinato.graphs.inspect.report import Finding, Report, Severity, in_order
from ostinato.graphs.inspect.source import Place, is_users
from ostinato.graphs.inspect.target import MakeInputs, Step, Target, as_target

_BATCH_SIZES = (1, 2, 4, 8)
_VARIANTS = 3


def breaks(
    fn: Step,
    make_inputs: MakeInputs,
    *,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
    variants: int = _VARIANTS,
    name: str | None = None,
) -> Report:
    """Graph breaks and recompilations of ``fn``; ``TargetError`` if it cannot be run, whether compiled or not."""
    return breaks_target(as_target(fn, make_inputs, name), batch_sizes=batch_sizes, variants=variants)


def breaks_target(target: Target, *, batch_sizes: Sequence[int] = _BATCH_SIZES, variants: int = _VARIANTS) -> Report:
    """The same for a target in hand: each size with each variant, then each size once more."""
    walked = walk(target, tuple(batch_sizes), variants)
    found = _distinct(_breaks(walked), walked)
    findings = [*(_finding(each, walked) for each in found), *recompile_findings(walked), *_failure(walked)]
    metrics = _metrics(walked, len(found))
    return Report(target.name, environment(), in_order(findings), metrics, _not_checked(target, walked, found))


def _breaks(walked: Walk) -> list[tuple[Record, BreakText]]:
    """What was said about breaks; where a function was dropped without such a record, the error that did it."""
    said = walked.log.named("dynamo_graph_break_reason")
    known = {(record.frame, record.attempt) for record in said}
    failed = [record for record in walked.log.named("dynamo_error") if (record.frame, record.attempt) not in known]
    if walked.failure is not None:
        failed = [record for record in failed if record.call < len(walked.calls) - 1]  # the last is the failure itself
    parsed = [(record, parse_break(record.text, TOOL)) for record in [*said, *failed]]
    return [(record, text) for record, text in parsed if "recompile limit exceeded" not in text.kind]


@dataclass
class _Break:
    """All that was said about one break."""

    place: Place | None
    advice: Advice
    text: BreakText
    records: list[Record]
    drops_function: bool

    def takes(self, place: Place | None, advice: Advice, text: BreakText) -> bool:
        """Whether another record is about this break: of its kind, or a consequence, at the same line."""
        here = self.place and self.place.at == (place and place.at)
        return bool(here and (advice.name == self.advice.name or advice.name in GENERAL or text.within))


def _distinct(parsed: list[tuple[Record, BreakText]], walked: Walk) -> list[_Break]:
    """One for each line and kind."""
    found: list[_Break] = []
    for record, text in parsed:
        place, advice = text.place or walked.subject.place, advice_on(text)
        known = next((each for each in found if each.takes(place, advice, text)), None)
        if known is None:
            found.append(_Break(place, advice, text, [record], text.drops_function))
        else:
            known.records.append(record)
            known.drops_function |= text.drops_function
    return found


def _finding(found: _Break, walked: Walk) -> Finding:
    advice, text = found.advice, found.text
    dropped = "; nothing of the function, or of what follows in it, is compiled" if found.drops_function else ""
    fullgraph = "; it was compiled with fullgraph=True, which raises here" if walked.subject.fullgraph else ""
    refused = "; a capture is refused too" if advice.waits else ""
    severity: Severity = "error" if advice.waits or dropped or fullgraph else "warning"
    message = f"the graph ends here: {advice.what}{dropped}{refused}{fullgraph}"
    hint = f" (Dynamo's hint: {_brief(text.hints[0])})" if text.hints else ""
    at = found.place.at if found.place else None
    return Finding.of("graph-break", severity, at, message, text.kind, _evidence(found, walked), advice.fix + hint)


def _evidence(found: _Break, walked: Walk) -> str:
    text = found.text
    calls = {record.call for record in found.records if record.call < len(walked.calls)}
    sizes = sorted({walked.calls[call].batch_size for call in calls})
    parts = [_brief(text.explanation or text.kind)]
    if text.within:
        parts.append(f"within {text.within.file}:{text.within.line}")
    outer = [place for place in text.stack if is_users(place.file)]
    if outer and found.place and outer[0].at != found.place.at:
        parts.append(f"called from {outer[0]}")
    parts.append(f"traced at batch size {', '.join(map(str, sizes))}" if sizes else "")
    return "; ".join(part.rstrip(".") for part in parts if part)


def _brief(words: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[a-z`)\]])\.(?= [A-Z])", words, maxsplit=1)[0]


def _failure(walked: Walk) -> list[Finding]:
    """What the compiled function raised although the function itself does not."""
    if walked.failure is None:
        return []
    call = walked.calls[-1]
    place = parse_break(str(walked.failure), TOOL).place or walked.subject.place
    message = f"torch.compile fails on it, which runs uncompiled: {describe(walked.failure)}"
    evidence = f"batch size {call.batch_size}, variant {call.variant}"
    return [Finding.of("graph-break", "error", place.at if place else None, message, "torch.compile", evidence)]


def _metrics(walked: Walk, breaks: int) -> dict[str, Any]:
    compiles = [record for record in walked.log.named("compilation_metrics") if record.fields.get("co_name")]
    with_operations = [record for record in compiles if record.fields.get("graph_op_count")]
    forms: dict[int | None, int] = {}
    for record in compiles:
        if record.fields.get("has_guarded_code"):
            forms[record.frame] = forms.get(record.frame, 0) + 1
    by_size = recompiles_by_size(walked)
    return {
        "calls": len(walked.calls),
        "frames": len({record.frame for record in compiles}),
        "graphs": len({record.frame for record in with_operations}),
        "breaks": breaks,
        "recompiles": sum(by_size.values()),
        "recompiles_by_batch_size": by_size,
        "cache_size": max(forms.values(), default=0),
        "recompile_limit": walked.recompile_limit,
        "seconds": round(sum(call.seconds for call in walked.calls), 3),
    }


def _not_checked(target: Target, walked: Walk, found: list[_Break]) -> tuple[str, ...]:
    said = ["what the backend makes of the graphs (Inductor): the walk ran them as they are"]
    if not target.has_variants:
        said.append("host values that change from step to step: make_inputs takes no variant")
    if not any(record.name == "compilation_metrics" for record in walked.log.records):
        why = "it is disabled for it" if walked.subject.disabled else "is it switched off (TORCHDYNAMO_DISABLE)?"
        said.append(f"the whole function: torch.compile compiled nothing; {why}")
    for each in found:
        if each.advice.name == "disabled" or "marked as skipped" in each.text.kind:
            said.append(f"what runs uncompiled at {each.place}: {_brief(each.text.explanation or each.text.kind)}")
        elif each.drops_function:
            said.append(f"what follows {each.place}: the function runs uncompiled from there, or as a whole")
    if walked.failure is not None:
        said.append(f"calls after the {len(walked.calls)}th: torch.compile failed")
    return tuple(dict.fromkeys(said))
