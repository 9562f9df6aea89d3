"""How much memory is left, so that a result that cannot fit is an error and not the end of the process.

Linux promises memory that it does not have: an array of 100 GB is made without a word, and the process is killed when
the pages are first written. So a result of 1 GiB or more is first compared with what is free. Smaller ones are not:
the comparison takes a part of a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LARGE = 1 << 30  # bytes, from which on we look

kept: Callable[[], int] = int  # bytes of addresses that results can have again; `anypool.memory` says how many

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_STATM = Path("/proc/self/statm")
_MOUNT = Path("/sys/fs/cgroup")
_FILES = {  # the limit, what is used, which of that can be taken back, the limit of swap
    2: ("memory.max", "memory.current", ("inactive_file", "active_file"), "memory.swap.max", "memory.swap.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"), "", ""),
}


def require(n_bytes: int, what: str, where: str = "") -> None:
    """Refuse to make ``what`` if the system says that there is not so much memory.

    Raises
    ------
    MemoryError
        With both numbers. Where the system does not tell, nothing is refused here.
    """
    if n_bytes < LARGE:
        return
    free = available()
    if free is not None and n_bytes > free:
        place = f" ({where})" if where else ""
        raise MemoryError(f"{what} needs {_text(n_bytes)}, and {_text(free)} of memory are free{place}")


def available() -> int | None:
    """Return the bytes that this process can still take, swap included; None where the system does not tell."""
    with suppress(OSError, ValueError, KeyError):  # not Linux, or one that hides it
        known = _table(_MEMINFO.read_text(), 1024)
        swap = known["SwapFree"]
        room = [known["MemAvailable"] + swap]
        room += [free + min(swap, of_swap) for free, of_swap in _groups(swap)]
        room += _addresses()
        return max(0, min(room))
    return None


def _addresses() -> Iterator[int]:
    """Yield what ``ulimit -v`` leaves, if it limits this process, and what is kept for the next result."""
    if resource is None:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit - int(_STATM.read_text().split()[0]) * resource.getpagesize() + kept()


def _table(text: str, unit: int) -> dict[str, int]:
    rows = (line.replace(":", " ").split() for line in text.splitlines())
    return {row[0]: int(row[1]) * unit for row in rows if len(row) > 1}


def _groups(swap: int) -> Iterator[tuple[int, int]]:
    """Yield, for each control group with a limit that this process is in, what it leaves of memory and of swap."""
    for line in _CGROUP.read_text().splitlines() if _CGROUP.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version, mount = (1, _MOUNT / "memory") if controllers else (2, _MOUNT)
        group = mount / path.lstrip("/")
        # In a container the path may be the host's, of which only the mount itself is to be seen.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            with suppress(OSError, ValueError, KeyError):  # no limit: no file, or the word "max"
                yield _left(folder, version, swap)


def _left(folder: Path, version: int, swap: int) -> tuple[int, int]:
    limit, used, reclaimable, swap_limit, swap_used = _FILES[version]
    free = int((folder / limit).read_text()) - int((folder / used).read_text())
    stat = _table((folder / "memory.stat").read_text(), 1)
    of_swap = swap
    if swap_limit:
        with suppress(OSError, ValueError):
            of_swap = int((folder / swap_limit).read_text()) - int((folder / swap_used).read_text())
    return free + sum(stat[name] for name in reclaimable), of_swap


def _text(n_bytes: int) -> str:
    number, units = n_bytes / 2**30, ["GiB", "TiB", "PiB"]
    while number >= 1000 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:,.1f} {units[0]}"
