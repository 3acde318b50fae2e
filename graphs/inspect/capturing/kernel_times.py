"""Seconds of each node of a captured graph: what torch's profiler saw of a few replays, matched to the nodes.

Without branches nodes run in the order of the graph, so the n-th kernel or copy on the device is the n-th such node;
names are compared, and where they or the counts differ nothing is matched. The profiler needs CUPTI, which a
container may not be allowed to use: then there are no times per node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from ostinato.graphs.inspect.capturing.ograph import Node

_REPLAYS = 3
_ON_DEVICE = ("kernel", "memcpy", "memset")


class DeviceEvent(NamedTuple):
    """One piece of work that the device did."""

    start: float
    name: str
    seconds: float


def kernel_seconds(
    nodes: Sequence[Node], replay: Callable[[], None], restore: Callable[[], None]
) -> list[float | None]:
    """By node index; None for nodes that take no time of their own, or where nothing could be matched."""
    runs = []
    for _ in range(_REPLAYS):
        restore()
        torch.cuda.synchronize()
        matched = match(nodes, _profiled(replay))
        if matched is None:
            return [None] * len(nodes)
        runs.append(matched)
    return [None if None in times else median(times) for times in zip(*runs, strict=True)]


def match(nodes: Sequence[Node], events: Sequence[DeviceEvent]) -> list[float | None] | None:
    """Seconds by node, from the events of one replay; None if they are not those of these nodes."""
    work = [node for node in nodes if node.type in _ON_DEVICE]
    ordered = sorted(events)
    if len(work) != len(ordered) or not all(_same(n, e) for n, e in zip(work, ordered, strict=True)):
        return None
    seconds = {node.index: event.seconds for node, event in zip(work, ordered, strict=True)}
    return [seconds.get(node.index) for node in nodes]


def _same(node: Node, event: DeviceEvent) -> bool:
    """Profilers shorten names, and write copies as ``Memcpy DtoD (Device -> Device)``."""
    if node.type != "kernel":
        return event.name.lower().startswith(node.type)
    ours, theirs = _plain(node.name), _plain(event.name)
    return not event.name.startswith(("Memcpy", "Memset")) and (ours.startswith(theirs) or theirs.startswith(ours))


def _plain(name: str) -> str:
    return name.removeprefix("void ").replace(" ", "")


def _profiled(replay: Callable[[], None]) -> list[DeviceEvent]:
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        replay()
        torch.cuda.synchronize()
    return [_event(event) for event in profiler.events() or () if _ran_on_device(event)]


def _ran_on_device(event: Any) -> bool:
    on_device = str(event.device_type).endswith("CUDA")
    return on_device and not event.name.startswith(("cuda", "ProfilerStep", "gpu_"))


def _event(event: Any) -> DeviceEvent:
    return DeviceEvent(event.time_range.start, event.name, event.time_range.elapsed_us() / 1e6)
