"""Masks, omitted NaNs, weights and reductions of whole windows, for compilers and whoever sees shapes without data."""

from __future__ import annotations

import numpy as np
import pytest

import anypool as ap
import tolerance

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning"),
]

CALLS = {
    "max": lambda x, m, w: ap.max_pool2d(x, 3, 2, 1, mask=m),
    "max with all there is": lambda x, m, w: ap.max_pool2d(
        x, 3, 2, 1, return_indices=True, mask=m, nan="omit", empty=-1.0, return_valid=True
    ),
    "min of windows in the padding": lambda x, m, w: ap.pool(x, "min", (2, 3), padding=4, axes=(2, 3), empty=0),
    "avg": lambda x, m, w: ap.avg_pool2d(x, 3, 2, 1, mask=m),
    "avg of what is no NaN": lambda x, m, w: ap.avg_pool2d(x, 2, ceil_mode=True, nan="omit", return_valid=True),
    "weighted avg": lambda x, m, w: ap.avg_pool2d(x, 2, 1, mask=m, weights=w),
    "weighted sum": lambda x, m, w: ap.pool(x, "sum", 2, axes=(1, 3), weights=w, empty=7),
    "lp": lambda x, m, w: ap.lp_pool2d(x, 3, 2, mask=m),
    "lp inf": lambda x, m, w: ap.lp_pool2d(x, float("inf"), 2, mask=m),
    "logsumexp": lambda x, m, w: ap.pool(x, "logsumexp", (3, 3), stride=2, r=2.0, mask=m),
    "adaptive avg": lambda x, m, w: ap.adaptive_avg_pool2d(x, (3, None), mask=m),
    "adaptive max": lambda x, m, w: ap.adaptive_max_pool2d(x, 3, mask=m, return_indices=True),
    "global avg": lambda x, m, w: ap.global_avg_pool(x, keepdims=False, mask=m),
    "global max": lambda x, m, w: ap.global_max_pool(x, mask=m, return_indices=True, keepdims=False),
    "any": lambda x, m, w: ap.pool(x > 1, "any", 2, axes=(2, 3), mask=m, empty=False),
    "ints": lambda x, m, w: ap.avg_pool2d((x.nan_to_num() * 9).int(), 2, mask=m, empty=-5),
    "uints": lambda x, m, w: ap.pool(
        (x.nan_to_num().abs() * 9).to(torch.uint8), "sum", 2, mask=m, axes=(2, 3), empty=9
    ),
    "mode": lambda x, m, w: ap.pool((x.nan_to_num() * 3).int(), "mode", 2, axes=(2, 3), ignore=(0, 1), empty=-9),
    "median": lambda x, m, w: ap.pool(x, "median", 3, axes=(2, 3), padding=1),
    "masked median": lambda x, m, w: ap.pool(x, "median", 3, axes=(2, 3), mask=m, nan="omit"),
    "quantile": lambda x, m, w: ap.pool(x, "quantile", 3, axes=(2, 3), q=0.3, nan="omit", return_valid=True),
    "var": lambda x, m, w: ap.pool(x, "var", (2, 3), correction=1, mask=m),
    "softmax": lambda x, m, w: ap.pool(x, "softmax", 2, stride=1, axes=(2, 3), r=2.0),
}
WITHOUT_GRADIENT = {"any", "ints", "uints", "mode"}
SHAPES = ((2, 4, 8, 8), (3, 4, 10, 9))
calls = pytest.mark.parametrize("name", CALLS)


def data(shape=SHAPES[0], dtype=torch.float32, *, last=False, seed=0):
    """Values, some of them NaN, a mask that is broadcast, and weights."""
    rng = np.random.default_rng((seed, *shape))
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.1] = np.nan
    mask = torch.from_numpy(rng.random((shape[0], 1, *shape[2:])) < 0.7)
    weights = torch.from_numpy(rng.random(shape[2:]) + 0.5).to(dtype)
    x = torch.from_numpy(x).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x, mask, weights


def tuples(y):
    return y if isinstance(y, tuple) else (y,)


def same(a, b):
    return tolerance.same_bits(a.detach().numpy(), b.detach().numpy())


def agree(got, wanted):
    assert all(same(a, b) for a, b in zip(tuples(got), tuples(wanted), strict=True))


def gradients(y, *leaves):
    y = tuples(y)[0]
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad(y, leaves, torch.where(y.isnan(), 0, g), allow_unused=True)


@calls
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_without_a_break(name, dynamic):
    """``torch.compile(fullgraph=True)``: the same bits and gradients, for several shapes."""
    call = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in SHAPES:
        x, mask, weights = data(shape)
        agree(compiled(x, mask, weights), call(x, mask, weights))
        if name in WITHOUT_GRADIENT:
            continue
        mine, theirs = ([t.clone().requires_grad_() for t in (x, weights)] for _ in range(2))
        got, wanted = (call(leaves[0], mask, leaves[1]) for call, leaves in ((compiled, mine), (call, theirs)))
        agree(got, wanted)
        for a, b in zip(gradients(got, *mine), gradients(wanted, *theirs), strict=True):
            assert (a is None or not a.any()) if b is None else same(a, b)


class Model(torch.nn.Module):
    def forward(self, x, mask, weights):
        y, places = ap.max_pool2d(x * 2, 3, 2, 1, mask=mask, empty=0, return_indices=True)
        return ap.avg_pool2d(x, 2, mask=mask, weights=weights), y, places, ap.pool(y, "median", 2, axes=(2, 3))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export(strict, dynamic, tmp_path):
    """``torch.export``, saved and loaded: masks may be of any batch and size."""
    given, model = data((2, 4, 12, 12)), Model()
    n, h = torch.export.Dim("n"), torch.export.Dim("h", min=8, max=64)
    sizes = ({0: n, 2: h}, {0: n, 2: h}, {0: h}) if dynamic else None
    program = torch.export.export(model, given, dynamic_shapes=sizes, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert "anypool.pool_counted" in loaded.code
    for batch in (given, data((5, 4, 20, 12))) if dynamic else (given,):
        agree(loaded(*batch), model(*batch))


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python:torch.jit.TracerWarning")
@pytest.mark.parametrize("name", sorted(set(CALLS) - {"weighted avg", "weighted sum"}))
def test_jit_trace(name):
    """A trace holds the operators, not the result that it saw."""
    x, mask, _ = data()
    traced = torch.jit.trace(lambda x, mask: CALLS[name](x, mask, None), (x, mask))
    assert "anypool::pool_counted" in str(traced.graph)
    for seed in (0, 1):
        x, mask, _ = data(seed=seed)
        agree(traced(x, mask), CALLS[name](x, mask, None))


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@calls
def test_fake_and_meta_tensors(name, last):
    """Shapes, dtypes and strides without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    given = data(last=last)
    with FakeTensorMode() as mode:
        fakes = tuples(CALLS[name](*(mode.from_tensor(t) for t in given)))
    for other in (fakes, tuples(CALLS[name](*(t.to("meta") for t in given)))):
        for real, fake in zip(tuples(CALLS[name](*given)), other, strict=True):
            assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


@pytest.mark.parametrize("name", ["avg", "max with all there is", "weighted avg", "masked median", "ints"])
@pytest.mark.parametrize("which", [(True, False, False), (False, True, False), (True, True, True)])
def test_compile_of_vmap(name, which):
    """A batch of tensors, of masks, or of all three."""
    torch._dynamo.reset()
    call, sets = CALLS[name], [data(seed=i) for i in range(3)]
    parts = list(zip(*sets, strict=True))
    given = [torch.stack(p, 1) if many else p[0] for p, many in zip(parts, which, strict=True)]
    wanted = [call(*(p[i if many else 0] for p, many in zip(parts, which, strict=True))) for i in range(3)]
    mapped = torch.func.vmap(call, in_dims=tuple(1 if many else None for many in which))
    got = torch.compile(mapped, fullgraph=True, backend="aot_eager")(*given)
    agree(got, tuple(torch.stack(p) for p in zip(*map(tuples, wanted), strict=True)))


def test_opcheck():
    """Schema, autograd registration, fake kernels with exact strides, dynamic shapes."""
    from anypool.tensors import counted
    from anypool.tensors.spec import spec_of

    for last in (False, True):
        x, mask, weights = data(last=last)
        x = x.nan_to_num()
        for build, args, others, given in (
            (ap.max_pool2d, (3, 2, 1), (mask, None), counted.Given(True, -1.0, return_indices=True, return_valid=True)),
            (ap.avg_pool2d, (3, 2, 1), (mask, weights), counted.Given()),
            (ap.lp_pool2d, (2, 3), (None, None), counted.Given(True, 0)),
            (ap.pool, ("median", 2), (mask, None), counted.Given()),
        ):
            spec = spec_of(build.call(x, *args).what, x.shape, "")
            leaves = [None if t is None else t.clone().requires_grad_(t.is_floating_point()) for t in (x, *others)]
            results = torch.library.opcheck(torch.ops.anypool.pool_counted.default, (*leaves, *given, *spec))
            assert set(results.values()) == {"SUCCESS"}
            grad = torch.rand_like(torch.ops.anypool.pool_counted(x, *others, *given, *spec)[0])
            backward = torch.ops.anypool.pool_counted_backward.default
            results = torch.library.opcheck(backward, (grad, x, *others, *given, *spec))
            assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": torch.ones(5, dtype=torch.bool)}, ValueError, r"mask must broadcast to the shape of x"),
        ({"mask": torch.ones(4)}, TypeError, r"mask must be bool"),
        ({"mask": "all"}, TypeError, r"mask must be a tensor or an array, got 'all'"),
        ({"mask": torch.ones(4, dtype=torch.bool, device="meta")}, ValueError, r"mask must be on the device of x, cpu"),
        ({"weights": torch.ones(4), "divisor_override": 2}, ValueError, r"weights and divisor_override exclude"),
        ({"empty": "0"}, TypeError, r"empty must be a number"),
        ({"nan": "drop"}, ValueError, r'nan must be "propagate" or "omit"'),
        ({"return_valid": 1}, TypeError, r"return_valid must be a bool"),
        ({"nan": "omit", "out": torch.empty(1, 2, 2)}, ValueError, r"out needs plain tensors of the CPU"),
    ],
)
def test_errors_of_fake_tensors(arguments, error, message):
    """What is wrong is said as soon as shapes are known."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(error, match=message):
        ap.avg_pool1d(torch.ones(1, 2, 4), 2, **arguments)


def test_second_gradients_are_refused_by_name():
    x, mask, _ = data()
    leaf = x.nan_to_num().requires_grad_()
    from anypool.tensors import counted
    from anypool.tensors.spec import spec_of

    spec = spec_of(ap.avg_pool2d.call(x, 2).what, x.shape, "")
    y = torch.ops.anypool.pool_counted(leaf, mask, None, *counted.Given(), *spec)[0]
    (once,) = torch.autograd.grad(y.nansum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="'mean' pooling with mask, nan or empty has first gradients only"):
        torch.autograd.grad(once.sum(), leaf)
