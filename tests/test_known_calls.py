"""Calls on tensors that differ in their data alone: the second goes from its arguments to its result without Python."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

import anypool as ap

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from anypool import tensors, token_tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(torch.jit|quantized tensor creation|nested tensors is in prototype)",
    "ignore::DeprecationWarning",
)


@pytest.fixture
def looked_into(monkeypatch):
    """The calls that Python had to look into, of windows and of tokens, from now on."""
    seen = []
    for module, name in ((tensors, "_looked_into"), (token_tensors.reduction, "_arguments")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, whole=whole, **k: (seen.append(a[1]), whole(*a, **k))[1])
    for module in (tensors, token_tensors):
        module.known.clear()
    return seen


def twice(call):
    """Return the results of a call that is new, and of the same call again."""
    return call(), call()


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_the_second_call_is_known(looked_into):
    x = torch.randn(2, 8, 9, 9)
    for call in (
        lambda t: ap.max_pool2d(t, 3, 2, 1),
        lambda t: ap.max_pool2d(t, (3, 2), stride=2, ceil_mode=True),
        lambda t: ap.max_pool2d(t, [3, 2], padding=[(0, 1), (1, 0)]),
        lambda t: ap.avg_pool2d(t, 2, count_include_pad=False),
        lambda t: ap.adaptive_max_pool2d(t, (2, None)),
        lambda t: ap.lp_pool2d(t, 2.0, 2),
        lambda t: ap.pool(t, "min", 2, axes=(2, 3)),
        ap.nn.MaxPool2d(3, 2),
        ap.nn.AdaptiveAvgPool2d(1),
    ):
        for y in (x, x.contiguous(memory_format=torch.channels_last), x.bfloat16(), x[:, ::2], x.transpose(1, 2)):
            before = len(looked_into)
            first, second = twice(lambda y=y, call=call: call(y))
            other = call(torch.flip(y, (0,)).clone(memory_format=torch.preserve_format))
            assert torch.equal(first, second)
            assert first.stride() == second.stride()
            assert second.is_contiguous(memory_format=torch.channels_last) == first.is_contiguous(
                memory_format=torch.channels_last
            )
            assert torch.equal(other, torch.flip(first, (0,)))
            assert len(looked_into) - before <= 2  # the copy of a view may lie otherwise


def test_what_is_equal_as_a_key_is_told_apart():
    x = torch.randn(1, 2, 8, 8)
    twice(lambda: ap.max_pool2d(x, 2, 1))
    with pytest.raises(TypeError, match="stride"):
        ap.max_pool2d(x, 2, True)
    with pytest.raises(TypeError, match="kernel_size"):
        ap.max_pool2d(x, 2.0, 1)
    twice(lambda: ap.lp_pool2d(x, 1, 2))
    with pytest.raises(TypeError, match="norm_type"):
        ap.lp_pool2d(x, True, 2)
    twice(lambda: ap.max_pool2d(x, 2, ceil_mode=False))
    with pytest.raises(TypeError, match="ceil_mode"):
        ap.max_pool2d(x, 2, ceil_mode=0)
    assert ap.max_pool2d(x, 2).shape != ap.avg_pool2d(x, 4).shape
    twice(lambda: ap.max_pool2d(x, 2, stride=2))
    with pytest.raises(TypeError, match="stride"):
        ap.max_pool2d(x, 2, "stride", 2)


def test_a_list_may_change():
    x, size = torch.randn(1, 1, 8, 8), [2, 2]
    assert twice(lambda: ap.max_pool2d(x, size))[1].shape == (1, 1, 4, 4)
    size[0] = 4
    assert ap.max_pool2d(x, size).shape == (1, 1, 2, 4)


def test_strides_and_addresses():
    """A view that begins between elements is copied; negated memory is not what it stands for."""
    x = torch.randn(1, 1, 8, 8)
    wanted = twice(lambda: ap.max_pool2d(x, 2))[1]
    between = torch.frombuffer(bytearray(b"\0" + x.numpy().tobytes()), dtype=torch.float32, offset=1).view(x.shape)
    assert between.data_ptr() % 4
    assert all(torch.equal(y, wanted) for y in twice(lambda: ap.max_pool2d(between, 2)))
    z = torch.view_as_complex(torch.randn(1, 1, 8, 8, 2))
    plain, negated = z.imag, z.conj().imag
    assert negated.is_neg()
    assert plain.stride() == negated.stride()
    twice(lambda: ap.max_pool2d(plain, 2))
    assert torch.equal(ap.max_pool2d(negated, 2), ap.max_pool2d(negated.clone().resolve_neg(), 2))
    tokens = negated[0, 0]
    twice(lambda: ap.pool_tokens(plain[0, 0], "max"))
    assert torch.equal(ap.pool_tokens(tokens, "max"), tokens.resolve_neg().max(0).values)
    ones = torch.ones(8)
    twice(lambda: ap.pool_tokens(x[0, 0], "max", mask=torch.view_as_complex(torch.stack([ones, ones], -1)).imag))
    with pytest.raises(ValueError, match="mask must be 0 or 1"):
        ap.pool_tokens(x[0, 0], "max", mask=torch.view_as_complex(torch.stack([ones, ones], -1)).conj().imag)


def test_who_watches_sees_it():
    x = torch.randn(1, 2, 8, 8)
    tokens, offsets = torch.randn(6, 4), torch.tensor([0, 2, 6])
    seen = []

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    calls = (lambda: ap.max_pool2d(x, 2), lambda: ap.pool_tokens(tokens, "mean", offsets=offsets))
    for call in calls:
        twice(call)
        for mode in (Dispatch, Function):
            seen.clear()
            with mode():
                y = call()
            assert seen
            assert torch.equal(y, call())
    traced = torch.jit.trace(lambda t: ap.max_pool2d(t, 2), (x,))
    assert torch.equal(traced(x + 1), ap.max_pool2d(x + 1, 2))
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda t: ap.max_pool2d(t, 2))(x)
    assert torch.equal(graph(x - 1), ap.max_pool2d(x - 1, 2))


def test_gradients_and_transforms():
    x, tokens = torch.randn(2, 3, 8, 8), torch.randn(5, 6)
    for call, t in ((lambda t: ap.max_pool2d(t, 2), x), (lambda t: ap.pool_tokens(t, "mean"), tokens)):
        wanted = twice(lambda t=t, call=call: call(t))[1]
        leaf = t.clone().requires_grad_()
        y = call(leaf)
        assert y.requires_grad
        y.sum().backward()
        assert leaf.grad.count_nonzero()
        with torch.no_grad():
            assert not call(leaf).requires_grad
        with torch.inference_mode():
            assert torch.equal(call(t.clone()), wanted)
        assert torch.equal(torch.func.vmap(call)(torch.stack([t, t]))[1], wanted)
        assert torch.func.grad(lambda t, call=call: call(t).sum())(t).count_nonzero()
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(t, torch.ones_like(t))
            assert torch.autograd.forward_ad.unpack_dual(call(dual)).tangent is not None


def test_what_is_no_memory_of_this_machine():
    x = torch.randn(1, 2, 8, 8)
    twice(lambda: ap.max_pool2d(x, 2))
    assert ap.max_pool2d(x.to("meta"), 2).is_meta
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    several = torch.randn(3, 2, 8, 8)
    twice(lambda: ap.max_pool2d(several[1:], 2))
    view = several[1:]
    several.untyped_storage().resize_(0)
    for gone in (freed, view):
        with pytest.raises(ValueError, match="x must have memory"):
            ap.max_pool2d(gone, 2)
        with pytest.raises(ValueError, match="x must have memory"):
            ap.pool_tokens(gone, "max")
    zeros = torch._efficientzerotensor((2, 2, 8, 8))[1:]  # elsewhere in no storage at all
    assert torch.equal(ap.max_pool2d(zeros, 2), torch.zeros(1, 2, 4, 4))
    quantized = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
    assert ap.max_pool2d(quantized, 2).is_quantized
    for odd in (x.to_sparse(), torch.nested.nested_tensor([x[0], x[0]])):
        with pytest.raises((NotImplementedError, RuntimeError, ValueError, TypeError)):
            ap.max_pool2d(odd, 2)
    assert torch.equal(*twice(lambda: ap.max_pool2d(x, 2)))  # also once there was one
    assert ap.max_pool2d(torch.zeros(0, 2, 8, 8), 2).shape == (0, 2, 4, 4)


def test_a_backend_that_is_asked_for_runs(looked_into):
    x, tokens = torch.randn(1, 1, 8, 8), torch.randn(5, 6)
    for call in (lambda: ap.max_pool2d(x, 2), lambda: ap.pool_tokens(tokens, "max")):
        wanted = twice(call)[1]
        n = len(looked_into)
        with ap.backends.use("reference"):
            assert torch.equal(call(), wanted)
        assert len(looked_into) == n + 1


def test_there_are_not_ever_more(looked_into):
    x = torch.randn(1, 1, 4, 4)
    for n in range(1, 1200):
        ap.pool_tokens(torch.ones(n, 1), "sum")
        ap.max_pool2d(torch.ones(1, 1, 2, 1 + n), 2)
    n = len(looked_into)
    ap.pool_tokens(torch.ones(1, 1), "sum")
    ap.max_pool2d(torch.ones(1, 1, 2, 2), 2)
    assert len(looked_into) == n + 2
    looked_into.clear()
    twice(lambda: ap.pool_tokens(torch.ones(4097, 2, 1), "sum"))  # large batches are not kept
    assert len(looked_into) == 2
    assert torch.equal(*twice(lambda: ap.max_pool2d(x, 2)))


# ---- tokens ----------------------------------------------------------------------------------------------------------


def random_layout(kind, rng, length):
    """Return x's leading shape and what says which tokens count, often wrong."""
    wrong = rng.random() < 0.3
    batch = () if kind in ("offsets", "segment_ids") else (3,) if rng.random() < 0.7 else (2, 2)
    low, high = (-1, length + 2) if wrong else (0, length + 1)
    if kind == "mask":
        value = rng.integers(0, 3 if wrong else 2, (*batch, length))
        dtype = rng.choice(["bool", "int64", "int32", "int16", "uint8", "float16", "float32", "float64"])
        return batch, value.astype(dtype)
    if kind == "lengths":
        return batch, rng.integers(low, high, batch)
    if kind == "spans":
        value = rng.integers(low, high, (*batch, 4, 2))
        return batch, value if wrong else np.sort(value, -1)
    if kind == "segment_ids":
        value = rng.integers(low, 5, length)
        return batch, value if wrong else np.sort(value)
    inner = rng.integers(low, high, 4)
    if not wrong:
        return batch, np.concatenate([[0], np.sort(inner), [length]])
    if rng.random() < 0.5:  # in order, but of other rows than there are
        return batch, np.sort(inner) if rng.random() < 0.5 else np.concatenate([[0], np.sort(inner)])
    return batch, np.concatenate([[0], inner, [length]])


def result_of(call):
    try:
        return call()
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", ["mask", "lengths", "offsets", "segment_ids", "spans"])
def test_every_layout_is_read_as_python_reads_it(kind, looked_into):
    rng = np.random.default_rng(0)
    refused = answered = 0
    for _ in range(300):
        length = int(rng.integers(1, 90))
        batch, value = random_layout(kind, rng, length)
        given = torch.from_numpy(value)
        if given.dtype == torch.float16 and rng.random() < 0.5:
            given = given.bfloat16()
        if rng.random() < 0.3 and given.dtype == torch.int64:
            given = given.to(rng.choice([torch.int32, torch.int16]))
        if given.ndim and rng.random() < 0.3:  # not without gaps
            given = given.repeat_interleave(2, -1)[..., ::2]
        kwargs = {kind: given}
        if kind == "lengths" and rng.random() < 0.5:
            kwargs["side"] = "left"
        if kind == "segment_ids" and rng.random() < 0.5:
            kwargs["num_segments"] = int(rng.integers(3, 9))
        if kind != "spans" and rng.random() < 0.3:
            kwargs["exclude_prefix"] = int(rng.integers(0, 4))
        reduction = ["mean", ["weightedmean", "max"], "last"][rng.integers(3)]
        x = torch.randn(*batch, length, 5)

        def call(x=x, reduction=reduction, kwargs=kwargs):
            return ap.pool_tokens(x, reduction, **kwargs)

        token_tensors.known.clear()
        wanted = result_of(call)  # Python's
        if isinstance(wanted, str):
            refused += 1
            good = {"mask": 1, "lengths": 0, "segment_ids": 0, "spans": 0}
            value = torch.full_like(given, good[kind]) if kind in good else torch.tensor([0, length])
            result_of(lambda x=x, reduction=reduction, kwargs=kwargs, value=value: ap.pool_tokens(
                x, reduction, **(kwargs | {kind: value})))  # fmt: skip
            assert result_of(call) == wanted
        else:
            n = len(looked_into)
            again = call()
            assert torch.equal(again.view(torch.int32), wanted.view(torch.int32))
            assert again.stride() == wanted.stride()
            answered += len(looked_into) == n
    assert refused > 10
    assert answered == 300 - refused


def test_all_tokens_of_a_batch(looked_into):
    x = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    first, second = twice(lambda: ap.pool_tokens(x, ("sum", "std")))
    assert torch.equal(first, second)
    assert second.shape == (2, 3, 8)
    assert len(looked_into) == 1


# ---- memory ----------------------------------------------------------------------------------------------------------


def asked_for_large_pages(address):
    """Whether the mapping that has this address has been told that large pages are welcome."""
    inside = False
    with open("/proc/self/smaps") as file:
        for line in file:
            if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(span[1], 16) <= address < int(span[2], 16)
            elif inside and line.startswith("VmFlags:"):
                return " hg" in line
    raise AssertionError("no such mapping")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system's kernel has no large pages"
)
def test_new_memory_comes_in_large_pages():
    """A result of PyTorch's that was never written; what is there already is left as it is."""
    n = 64 << 20
    x = torch.zeros(n // 4).view(1, 64, -1)
    block = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    out = torch.frombuffer(block, dtype=torch.float32)[: n // 8].view(1, 64, -1)
    inside = out.data_ptr() + n // 4
    assert not asked_for_large_pages(inside)
    ap.max_pool1d(x, 2, out=out)
    assert asked_for_large_pages(inside)
    other = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    there = torch.frombuffer(other, dtype=torch.float32)[: n // 8].view(1, 64, -1)
    there.fill_(1)
    was = asked_for_large_pages(there.data_ptr() + n // 4)
    ap.max_pool1d(x, 2, out=there)
    assert asked_for_large_pages(there.data_ptr() + n // 4) == was
    assert torch.equal(out, there)
