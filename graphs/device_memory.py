"""Memory of a GPU in two halves, addresses and what lies behind them, by the driver's virtual memory management.

Addresses are reserved once; memory is created and mapped there, unmapped and given back, and mapped again: whoever
holds the addresses, as captured graphs do, finds other memory at the same place. By ctypes, nothing is built; layouts
are those of cuda.h (13.1), and the tests compile a fake driver against it. Knows no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from ctypes import byref, c_int, c_size_t, c_uint64
from typing import Any

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2
_PINNED, _ON_DEVICE, _READ_AND_WRITE, _RECOMMENDED = 1, 1, 3, 1


class DriverError(RuntimeError):
    """A call that the driver refused. ``status``: its ``CUresult``."""

    def __init__(self, call: str, status: int) -> None:
        super().__init__(f"{call} failed with CUresult {status}")
        self.status = status


class _Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _Flags(ctypes.Structure):
    _fields_ = [
        ("compression_type", ctypes.c_ubyte),
        ("gpu_direct_rdma_capable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    ]


class _Properties(ctypes.Structure):
    """``CUmemAllocationProp``."""

    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("win32_handle", ctypes.c_void_p),
        ("flags", _Flags),
    ]


class _Access(ctypes.Structure):
    """``CUmemAccessDesc``."""

    _fields_ = [("location", _Location), ("flags", c_int)]


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuMemGetAllocationGranularity": (ctypes.POINTER(c_size_t), ctypes.POINTER(_Properties), c_int),
    "cuMemAddressReserve": (ctypes.POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemAddressFree": (c_uint64, c_size_t),
    "cuMemCreate": (ctypes.POINTER(c_uint64), c_size_t, ctypes.POINTER(_Properties), c_uint64),
    "cuMemMap": (c_uint64, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemSetAccess": (c_uint64, c_size_t, ctypes.POINTER(_Access), c_size_t),
    "cuMemUnmap": (c_uint64, c_size_t),
    "cuMemRelease": (c_uint64,),
}


class DeviceMemory:
    """``num_bytes`` of device ``index`` at ``address``, mapped from the beginning; freed with the object.

    ``DriverError`` where the driver lacks something, or memory: then nothing is left. The device's context exists.
    """

    def __init__(self, num_bytes: int, index: int) -> None:
        self._call = _Calls(LIBRARY)
        location = _Location(_ON_DEVICE, index)
        self._properties = _Properties(type=_PINNED, location=location)
        self._access = _Access(location, _READ_AND_WRITE)
        unit, address = c_size_t(), c_uint64()
        self._call("cuMemGetAllocationGranularity", byref(unit), byref(self._properties), _RECOMMENDED)
        self.num_bytes = -(-num_bytes // unit.value) * unit.value
        """Rounded up to what the device maps at once."""
        self._call("cuMemAddressReserve", byref(address), self.num_bytes, 0, 0, 0)
        self.address = address.value
        self._mapped = _Mapped()
        self._free = weakref.finalize(self, _free, self._call, self._mapped, self.address, self.num_bytes)
        self._free.atexit = False  # the driver frees what a process had
        try:
            self.map()
        except DriverError:
            self._free()
            raise

    @property
    def mapped(self) -> bool:
        """Whether there is memory behind the addresses."""
        return self._mapped.value

    def map(self) -> None:
        """Take memory, of undefined content; ``DriverError`` changes nothing."""
        if self.mapped:
            return
        handle = c_uint64()
        self._call("cuMemCreate", byref(handle), self.num_bytes, byref(self._properties), 0)
        try:
            self._call("cuMemMap", self.address, self.num_bytes, 0, handle.value, 0)
        finally:
            self._call("cuMemRelease", handle.value)  # the mapping keeps it
        try:
            self._call("cuMemSetAccess", self.address, self.num_bytes, byref(self._access), 1)
        except DriverError:
            self._call("cuMemUnmap", self.address, self.num_bytes)
            raise
        self._mapped.value = True

    def unmap(self) -> None:
        """Give the memory back; nothing may be running that reads or writes it."""
        if self.mapped:
            self._call("cuMemUnmap", self.address, self.num_bytes)
            self._mapped.value = False


class _Mapped:
    """Apart from the memory object, since what frees it may not hold that."""

    value = False


class _Calls:
    """The driver's functions by name; a status other than 0 is a ``DriverError``."""

    def __init__(self, library: str) -> None:
        try:
            loaded = ctypes.CDLL(library)
            self._functions = {name: getattr(loaded, name) for name in _SIGNATURES}
        except (OSError, AttributeError) as error:
            raise DriverError(str(error), 0) from error
        for name, arguments in _SIGNATURES.items():
            self._functions[name].argtypes, self._functions[name].restype = arguments, c_int

    def __call__(self, name: str, *arguments: Any) -> None:
        status = self._functions[name](*arguments)
        if status:
            raise DriverError(name, status)


def _free(call: _Calls, mapped: _Mapped, address: int, num_bytes: int) -> None:
    with contextlib.suppress(DriverError):  # a device that was lost has nothing to give back
        if mapped.value:
            call("cuMemUnmap", address, num_bytes)
        call("cuMemAddressFree", address, num_bytes)
