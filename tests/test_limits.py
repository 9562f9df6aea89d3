"""A result that cannot fit is a MemoryError before anything is written, whatever the system would promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anypool as ap
from anypool import limits

GIB = 1 << 30
MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: {} kB\nSwapFree: {} kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system that says what the test tells it."""
    mount = tmp_path / "cgroup"
    mount.mkdir()
    monkeypatch.setattr(limits, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path / "self")
    monkeypatch.setattr(limits, "_MOUNT", mount)
    monkeypatch.setattr(limits, "kept", int)  # what earlier tests of this process left is not this system's

    def says(available: int, swap: int = 0, line: str = "", **groups: dict[str, object]) -> Path:
        (tmp_path / "meminfo").write_text(MEMINFO.format(available // 1024, swap // 1024))
        if line:
            (tmp_path / "self").write_text(f"5:cpu,cpuacct:/elsewhere\n{line}\n")
        for folder, contents in groups.items():
            place = mount / folder.replace("__", "/")
            place.mkdir(parents=True, exist_ok=True)
            for name, text in contents.items():
                (place / name).write_text(f"{text}\n")
        return mount

    return says


def v2(limit, used, inactive=0, **more):
    return {
        "memory.max": limit, "memory.current": used, "memory.stat": f"anon 7\ninactive_file {inactive}\nactive_file 0",
        **more,
    }  # fmt: skip


def test_without_a_group(system):
    system(3 * GIB, GIB)
    assert limits.available() == 4 * GIB


def test_the_tightest_group_counts_and_pages_that_can_be_taken_back_are_free(system):
    system(8 * GIB, 0, "0::/outer/inner", outer__inner=v2(4 * GIB, 3 * GIB, GIB), outer=v2(3 * GIB, 3 * GIB, GIB // 2))
    assert limits.available() == GIB // 2


def test_swap_of_a_group(system):
    swap = {"memory.swap.max": GIB, "memory.swap.current": GIB // 2}
    system(8 * GIB, 2 * GIB, "0::/a", a=v2(4 * GIB, 3 * GIB, 0, **swap))
    assert limits.available() == GIB + GIB // 2


def test_a_group_without_a_limit(system):
    system(8 * GIB, 0, "0::/a", a=v2("max", 3 * GIB))
    assert limits.available() == 8 * GIB


def test_the_older_groups(system):
    contents = {
        "memory.limit_in_bytes": 2 * GIB, "memory.usage_in_bytes": GIB,
        "memory.stat": "total_inactive_file 5\ntotal_active_file 6",
    }  # fmt: skip
    system(8 * GIB, 0, "4:memory:/in/the/host", memory=contents)
    assert limits.available() == GIB + 11


def test_a_limit_of_addresses(system, tmp_path, monkeypatch):
    """What ``ulimit -v`` sets, after which PyTorch would raise a RuntimeError."""
    resource = pytest.importorskip("resource")
    (tmp_path / "statm").write_text(f"{GIB // resource.getpagesize()} 7 7 7 0 7 0\n")
    monkeypatch.setattr(limits, "_STATM", tmp_path / "statm")
    for limit, left in ((3 * GIB, 2 * GIB), (GIB // 2, 0), (9 * GIB, 4 * GIB), (resource.RLIM_INFINITY, 4 * GIB)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, resource.RLIM_INFINITY))
        system(4 * GIB)
        assert limits.available() == left


def test_addresses_that_are_kept_for_the_next_result_are_free(system, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    (tmp_path / "statm").write_text(f"{GIB // resource.getpagesize()} 7 7 7 0 7 0\n")
    monkeypatch.setattr(limits, "_STATM", tmp_path / "statm")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 * GIB, resource.RLIM_INFINITY))
    monkeypatch.setattr(limits, "kept", lambda: GIB // 4)
    system(4 * GIB)
    assert limits.available() == GIB + GIB // 4


def test_where_the_system_does_not_tell_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_MEMINFO", tmp_path / "none")
    assert limits.available() is None
    limits.require(1 << 60, "the result")


def test_words(system):
    system(2 * GIB)
    limits.require(2 * GIB, "the result")
    with pytest.raises(MemoryError) as caught:
        limits.require(3 * GIB, "the result of shape (3,)", "x: (3,)")
    assert str(caught.value) == "the result of shape (3,) needs 3.0 GiB, and 2.0 GiB of memory are free (x: (3,))"
    with pytest.raises(MemoryError, match=r"needs 4\.0 TiB, and 2\.0 GiB"):
        limits.require(4 << 40, "the result")


VIRTUAL = np.broadcast_to(np.float32(1), (1, 1, 256, 1 << 20))  # 1 GiB, in 4 bytes
TOKENS = np.broadcast_to(np.float32(1), (4, 1 << 10))
SPANS = np.broadcast_to(np.array([0, 4]), (1 << 18, 2))

LARGE = {
    "max": lambda: ap.max_pool2d(VIRTUAL, 1),
    "avg": lambda: ap.avg_pool2d(VIRTUAL, 1),
    "indices": lambda: ap.max_pool2d(VIRTUAL, (1, 2), return_indices=True),
    "codes": lambda: ap.vjp(ap.max_pool2d, VIRTUAL, 1),
    "gradient": lambda: ap.vjp(ap.global_avg_pool, VIRTUAL)[1](np.ones((1, 1, 1, 1), np.float32)),
    "adaptive": lambda: ap.adaptive_avg_pool1d(np.ones((1, 1, 7)), (1 << 27) + 1),
    "unpool": lambda: ap.max_unpool1d(np.ones((1, 1, 1)), np.zeros((1, 1, 1), int), 1 << 28),
    "tokens": lambda: ap.pool_tokens(TOKENS, "mean", spans=SPANS),
    "winners": lambda: ap.vjp(ap.pool_tokens, TOKENS, "max", spans=SPANS),
    "attention": lambda: ap.attention_pool(TOKENS, np.ones(1 << 10, np.float32), spans=SPANS),
    "segments": lambda: ap.pool_tokens(TOKENS, "mean", segment_ids=[0] * 4, num_segments=1 << 27),
    "state": lambda: ap.PoolState("mean").update(TOKENS[None], rows=[1 << 27]),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_larger_than_free_memory(name, system, monkeypatch):
    """Nothing of that size is even asked for: an array that Linux promises is one that it kills for."""
    system(GIB // 2)

    def refuse(*args, **kwargs):
        raise AssertionError("asked for memory")

    monkeypatch.setattr("anypool.memory._block", refuse)
    with pytest.raises(MemoryError, match=r"needs [\d.]+ [GT]iB, and 0\.5 GiB of memory are free"):
        LARGE[name]()


def test_the_result_and_its_indices_count_together(system):
    system(5 * GIB)
    x = np.broadcast_to(np.float32(1), (1, 1, 512, 1 << 20))  # 2 GiB and 4 GiB
    with pytest.raises(MemoryError, match=r"needs 6\.0 GiB"):
        ap.max_pool2d(x, 1, return_indices=True)


def test_the_taps_of_tensors_in_torch_operations(system):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    system(GIB)
    x = torch.zeros(1, 1).expand(256, 1 << 13)
    with ap.backends.use("reference"), pytest.raises(MemoryError, match=r"the taps of every window needs [\d.]+ GiB"):
        ap.pool(x, "logsumexp", (128, 64), stride=(1, 16))


def test_the_owners_of_places_of_an_unpooled_tensor(system):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    system(GIB)
    x = torch.zeros(1, 1, 1 << 14, dtype=torch.int8)
    with pytest.raises(MemoryError, match=r"the owner of every place of the result needs 4\.8 GiB"):
        ap.max_unpool1d(x, torch.zeros_like(x, dtype=torch.int64), 1 << 14)


def test_a_result_that_is_only_explained_needs_nothing(system):
    """Nor does the system have to promise it: this one is larger than all addresses."""
    system(0)
    x = np.broadcast_to(np.float32(1), (1 << 30, 8, 7, 7))
    for kwargs in ({}, {"mask": np.ones((7, 7), bool)}, {"return_indices": True}):
        e = ap.explain(ap.adaptive_max_pool2d, x, 1 << 10, **kwargs)
        assert e.output_shape == (1 << 30, 8, 1 << 10, 1 << 10)


def test_an_out_of_the_caller_needs_nothing(system):
    system(0)
    x = np.broadcast_to(np.int8(1), (1 << 10, 1 << 20))
    out = np.zeros((1, 1), np.int8)
    assert ap.pool(x, "max", (1 << 10, 1 << 20), out=out) is out


def test_small_results_do_not_look(monkeypatch):
    monkeypatch.setattr(limits, "available", lambda: pytest.fail("looked"))
    ap.max_pool2d(np.ones((1, 8, 512, 512), np.float32), 2, return_indices=True)


def test_tensors(system):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    system(GIB // 2)
    x = torch.ones(1).expand(1, 1, 256, 1 << 20)
    for call in (
        lambda: ap.max_pool2d(x, 1),
        lambda: ap.avg_pool2d(x, 1),
        lambda: ap.max_pool2d(x, (1, 2), return_indices=True),
        lambda: ap.max_pool2d(x.detach().requires_grad_(), 1),
        lambda: ap.global_avg_pool(torch.ones(1, requires_grad=True).expand(1, 1, 256, 1 << 20)).backward(
            torch.ones(1, 1, 1, 1)
        ),
    ):
        with pytest.raises(MemoryError, match=r"needs [\d.]+ GiB"):
            call()


def test_what_is_kept_for_the_next_result_can_be_had_again():
    pytest.importorskip("resource")
    script = """
import resource
import numpy as np
import anypool as ap

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2000 << 20),) * 2)
x = np.broadcast_to(np.int8(1), (1, 1200 << 20))
for _ in range(3):
    print(ap.max_pool1d(x, 1).size)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1258291200"] * 3, done.stderr
