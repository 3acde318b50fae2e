"""Memory that is given back and taken again at the same addresses: on a CPU, and through a fake driver of a GPU."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch
from torch import Tensor

import fake_libcuda_memory as fake
from ostinato.graphs import device_memory, regions
from ostinato.graphs.device_memory import DeviceMemory, DriverError
from ostinato.graphs.regions import DeviceRegion, FixedRegion, HostRegion, Region, region_of
from ostinato.layers.errors import ConfigError

CPU = torch.device("cpu")
SIZES = [1000, 70_000, 512, 4096]
OUT_OF_MEMORY, NOT_SUPPORTED, INVALID = 2, 801, 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> fake.Driver:
    return fake.install(monkeypatch)


def region(kind: str) -> Region:
    return region_of(SIZES, CPU if kind == "host" else fake.GPU)


def fill(parts: list[Tensor]) -> None:
    for number, part in enumerate(parts, 1):
        part.fill_(number)


@pytest.mark.parametrize("kind", ["host", "device"])
def test_parts_are_zeroed_apart_and_come_back_where_they_were(kind: str, driver: fake.Driver) -> None:
    made = region(kind)
    assert isinstance(made, HostRegion if kind == "host" else DeviceRegion)
    assert [part.numel() for part in made.parts] == SIZES
    assert not any(part.any() for part in made.parts)
    assert all(part.data_ptr() % regions.ALIGNMENT == 0 for part in made.parts)
    assert len({part.untyped_storage().data_ptr() for part in made.parts}) == len(SIZES)
    assert [part.untyped_storage().nbytes() for part in made.parts] == SIZES, "none sees another's bytes"
    for _ in range(3):
        fill(made.parts)
        assert [part.unique().tolist() for part in made.parts] == [[1], [2], [3], [4]]
        places = [part.data_ptr() for part in made.parts]
        made.release()
        made.restore()
        assert [part.data_ptr() for part in made.parts] == places
        assert not any(part.any() for part in made.parts), "taken anew, and zeroed"


def test_a_gpus_memory_goes_and_comes_in_whole_units(driver: fake.Driver) -> None:
    made = region("device")
    units = -(-(1024 + 70_144 + 512 + 4096) // fake.UNIT) * fake.UNIT
    assert (driver.reserved, driver.taken) == (units, units)
    made.release()
    made.release()
    assert (driver.reserved, driver.taken) == (units, 0), "addresses are kept"
    made.restore()
    made.restore()
    assert driver.taken == units


@pytest.mark.parametrize("released", [False, True])
def test_memory_goes_with_the_last_tensor(driver: fake.Driver, released: bool) -> None:
    made = region("device")
    kept = made.parts[2]
    if released:
        made.release()
    del made
    gc.collect()
    assert driver.reserved > 0
    if not released:
        kept.fill_(7)
    del kept
    gc.collect()
    assert (driver.reserved, driver.taken) == (0, 0)


def test_too_little_memory_leaves_nothing_and_gives_up_what_torch_keeps(
    driver: fake.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.limit(fake.UNIT)
    with pytest.raises(torch.OutOfMemoryError, match="cuMemCreate failed with CUresult 2"):
        region("device")
    gc.collect()
    assert (driver.reserved, driver.taken) == (0, 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: driver.limit(-1))
    made = region("device")
    made.release()
    driver.limit(0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        made.restore()
    assert driver.taken == 0
    driver.limit(-1)
    made.restore()
    assert not any(part.any() for part in made.parts)


def test_a_driver_that_cannot_gives_ordinary_memory_that_stays(
    driver: fake.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(regions.torch, "zeros", lambda size, dtype, device: zeros(size, dtype=dtype))
    driver.unsupported(True)
    made = region("device")
    assert isinstance(made, FixedRegion)
    with pytest.raises(ConfigError, match="keep its addresses: cuMemGetAllocationGranularity failed with CUresult 801"):
        made.release()
    driver.unsupported(False)
    driver.fail_access(INVALID)
    assert isinstance(region("device"), FixedRegion)
    assert (driver.reserved, driver.taken) == (0, 0), "what was mapped before the refusal is given back"
    monkeypatch.setattr(device_memory, "LIBRARY", "libno-such.so")
    made = region("device")
    with pytest.raises(ConfigError, match=r"libno-such\.so"):
        made.release()


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "LIBRARY", "libno-such.so")
    with pytest.raises(DriverError, match="no-such"):
        DeviceMemory(100, 0)


@pytest.mark.alone
def test_pages_of_a_host_go_back_to_the_system() -> None:
    mib, resident = 1 << 20, psutil.Process().memory_info
    before = resident().rss
    made = region_of([100 * mib, 100 * mib], CPU)
    assert resident().rss - before < 10 * mib, "none is there before it is written"
    fill(made.parts)
    assert resident().rss - before > 190 * mib
    made.release()
    assert resident().rss - before < 10 * mib
    made.restore()
    fill(made.parts[:1])
    assert 90 * mib < resident().rss - before < 110 * mib
