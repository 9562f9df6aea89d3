"""The operators that PyTorch knows: checked by its own checker, compiled, exported, transformed, differentiated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings

import pytest

import anypool as ap

torch = pytest.importorskip("torch", reason="torch is not installed")
# PyTorch's own tracers use what PyTorch itself calls outdated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning"),
]

CALLS = {
    "max": lambda x: ap.max_pool2d(x, 3, 2, 1),
    "max dilated": lambda x: ap.max_pool2d(x, 2, 1, 0, 2),
    "max with indices": lambda x: ap.max_pool2d(x, 3, 2, 1, return_indices=True),
    "min": lambda x: ap.pool(x, "min", (2, 3), ceil_mode=True),
    "avg": lambda x: ap.avg_pool2d(x, 3, 2, 1),
    "avg ceil": lambda x: ap.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg same": lambda x: ap.avg_pool2d(x, 3, 2, "same"),
    "sum": lambda x: ap.pool(x, "sum", 2, axes=(1, 3)),
    "lp": lambda x: ap.lp_pool2d(x, 3, 2),
    "lp inf": lambda x: ap.lp_pool2d(x, float("inf"), 2),
    "logsumexp": lambda x: ap.pool(x, "logsumexp", (3, 3), stride=2),
    "adaptive avg": lambda x: ap.adaptive_avg_pool2d(x, (3, None)),
    "adaptive max": lambda x: ap.adaptive_max_pool2d(x, 3, return_indices=True),
    "global avg": lambda x: ap.global_avg_pool(x, keepdims=False),
    "global max": lambda x: ap.global_max_pool(x),
}
DIFFERENTIABLE = {name: call for name, call in CALLS.items() if name != "max with indices"}
calls = pytest.mark.parametrize("name", CALLS)


def distinct(*shape, dtype=torch.float64):
    """Values that are all different, so that every winner is clear, and none near 0."""
    n = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(n)
    return (torch.randperm(n, generator=generator).to(dtype).view(shape) - n / 2 + 0.25) / 8


def tuples(y):
    return y if isinstance(y, tuple) else (y,)


def first(call):
    return lambda x: tuples(call(x))[0]


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_both_modes_and_orders(name):
    """Against finite differences: reverse, forward, forward over reverse, reverse over reverse."""
    call = first(CALLS[name])
    for x in (distinct(2, 3, 6, 7), distinct(1, 2, 7, 6).to(memory_format=torch.channels_last)):
        x = x.requires_grad_()
        assert torch.autograd.gradcheck(call, (x,), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("name", CALLS)
def test_transforms(name):
    """``torch.func``: grad, jvp, vmap over any axis, vmap of grad, Jacobians, and a Hessian through lp."""
    call = first(CALLS[name])
    x = distinct(3, 2, 4, 6, 6)
    func = torch.func
    for dim in (0, 1, -1):
        mapped = func.vmap(call, in_dims=dim)(x)
        assert torch.equal(mapped, torch.stack([call(t) for t in x.unbind(dim)]))
    total = lambda t: call(t).square().sum()  # noqa: E731
    one = x[0]
    grad = func.grad(total)(one)
    leaf = one.clone().requires_grad_()
    assert torch.equal(grad, torch.autograd.grad(total(leaf), leaf)[0])
    assert torch.equal(func.vmap(func.grad(total))(x), torch.stack([func.grad(total)(t) for t in x]))
    y, tangent = func.jvp(call, (one,), (torch.ones_like(one),))
    _, pull = func.vjp(call, one)
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    torch.testing.assert_close((tangent * g).sum(), pull(g)[0].sum())
    tiny = distinct(1, 4, 3, 3)
    small = lambda t: first(CALLS[name])(t)  # noqa: E731
    torch.testing.assert_close(func.jacrev(small)(tiny), func.jacfwd(small)(tiny))
    torch.testing.assert_close(func.hessian(total)(tiny), func.jacrev(func.grad(total))(tiny))


def test_gradients_where_lp_is_zero():
    """A window of zeros has the gradient 0, of both orders, and never NaN."""
    for p in (1, 1.5, 2, 3):
        x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(ap.lp_pool2d(x, p, 2).sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(grad.sum(), x)
        assert torch.equal(again, torch.zeros_like(x)), p
        assert not grad.isnan().any()


# ---- PyTorch's own checker -------------------------------------------------------------------------------------------


def checked():
    """Every operator with arguments of every kind: (id, operator, arguments)."""
    from anypool.tensors import operators  # noqa: F401  defines them
    from anypool.tensors.spec import Origin, spec_of

    anypool = torch.ops.anypool
    builds = {
        "max": ap.max_pool2d.call(torch.empty(2, 3, 8, 8), 3, 2, 1),
        "avg": ap.avg_pool2d.call(torch.empty(2, 3, 8, 8), 3, 2, 1, True),
        "lp": ap.lp_pool2d.call(torch.empty(2, 3, 8, 8), 2, 3),
        "adaptive": ap.adaptive_avg_pool2d.call(torch.empty(2, 3, 8, 8), (3, 5)),
        "adaptive max": ap.adaptive_max_pool2d.call(torch.empty(2, 3, 8, 8), (3, 5)),
        "volume": ap.max_pool3d.call(torch.empty(2, 3, 6, 5, 4), 2),
        "line": ap.pool.call(torch.empty(3, 9), "logsumexp", 2, axes=1, stride=1),
    }
    for name, call in builds.items():
        shape = call.x.shape
        spec = spec_of(call.what, shape, "")
        for last in (False, True) if len(shape) in (4, 5) else (False,):
            form = torch.contiguous_format
            if last:
                form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
            plain = torch.rand(shape).contiguous(memory_format=form)
            x = plain.clone().requires_grad_()
            label = f"{name} channels last" if last else name
            yield label, anypool.pool, (x, *spec)
            y = anypool.pool(plain, *spec)
            grad = torch.rand_like(y).requires_grad_()
            if spec.selects:
                yield label, anypool.pool_with_codes, (x, *spec)
                codes = anypool.pool_with_codes(plain, *spec)[1]
                yield label, anypool.select_backward, (grad, codes, *Origin.of(plain), *spec)
            elif spec.linear:
                yield label, anypool.sum_backward, (grad, *Origin.of(plain), *spec)
            else:
                yield label, anypool.power_backward, (grad, x, y, *spec)


def test_opcheck():
    """Schema, autograd registration, fake kernels with exact strides, dynamic shapes: all five operators."""
    seen = set()
    for label, operator, args in checked():
        results = torch.library.opcheck(operator.default, args)
        assert set(results.values()) == {"SUCCESS"}, (label, operator, results)
        seen.add(operator.__name__)
    assert seen == {"pool", "pool_with_codes", "sum_backward", "select_backward", "power_backward"}


def test_operators_elsewhere():
    """The kernels for other devices, in torch operations, give what those for the CPU do."""
    for label, operator, args in checked():
        plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        here = tuples(operator(*plain))
        elsewhere = tuples(
            torch._C._dispatch_call_boxed(  # the kernel that CUDA would take
                operator.default._handle, *plain
            )
            if hasattr(torch._C, "_dispatch_call_boxed")
            else torch.ops.anypool.__getattr__(operator.__name__).default.redispatch(
                torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *plain
            )
        )
        for a, b in zip(here, elsewhere, strict=True):
            assert a.stride() == b.stride(), label
            torch.testing.assert_close(a, b)


# ---- compilers, exporters, tracers -----------------------------------------------------------------------------------


@calls
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_without_a_break(name, dynamic):
    """``torch.compile(fullgraph=True)``: the same bits and strides, forward and backward, for several shapes."""
    call = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 4, 8, 8), (3, 4, 10, 9)):
        for grad in (False, True):
            mine, theirs = (distinct(*shape, dtype=torch.float32).requires_grad_(grad) for _ in range(2))
            got, expected = tuples(compiled(mine)), tuples(call(theirs))
            for a, b in zip(got, expected, strict=True):
                assert torch.equal(a, b)
                assert a.stride() == b.stride()
            if grad:
                for y in (got[0], expected[0]):
                    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
                assert torch.equal(mine.grad, theirs.grad)


def test_compiled_graph_saves_codes_only():
    """What crosses from the forward graph to the backward graph of a max: one byte for each output."""
    saved = []
    torch._dynamo.reset()

    def pack(t):
        saved.append((t.dtype, t.numel()))
        return t

    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    compiled = torch.compile(lambda x: ap.max_pool2d(x, 2), fullgraph=True, backend="aot_eager")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        compiled(x)
    assert saved == [(torch.uint8, 2 * 3 * 4 * 4)]


def test_inductor():
    """The default compiler, once: a convolution around a pooling."""
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), ap.nn.MaxPool2d(2), torch.nn.ReLU(), ap.nn.AvgPool2d(2))
    x = torch.randn(2, 3, 14, 14)
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("Inductor needs a C++ compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(got, model(x))


class Model(torch.nn.Module):
    def forward(self, x):
        y, places = ap.max_pool2d(ap.avg_pool2d(x, 3, 1, 1), 3, 2, 1, return_indices=True)
        return ap.adaptive_avg_pool2d(y, 2), places


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export(strict, dynamic, tmp_path):
    """``torch.export``, saved and loaded: the program holds our operators and gives the same bits."""
    x, model = torch.randn(2, 3, 12, 12), Model()
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6, max=64)} if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=(dims,) if dynamic else None, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert "anypool.pool" in loaded.code
    for batch in (x, torch.randn(5, 3, 20, 12)) if dynamic else (x,):
        assert all(torch.equal(a, b) for a, b in zip(loaded(batch), model(batch), strict=True))


def test_jit_trace_takes_pytorchs_operator():
    """A trace is for somewhere else: it holds PyTorch's operators, where there are such."""
    x = torch.randn(1, 3, 8, 8)
    traced = torch.jit.trace(lambda x: ap.max_pool2d(x, 2), x)
    assert "aten::max_pool2d" in str(traced.graph)
    assert torch.equal(traced(x * 2), ap.max_pool2d(x * 2, 2))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_of_sizes_of_the_input():
    x = torch.randn(1, 3, 8, 8)
    for call in (
        lambda x: ap.pool(x, "lp", (2, 3), padding="same"),
        lambda x: ap.global_avg_pool(x, data_format="channels_last"),
        lambda x: ap.pool(x, "min", (2, 2)),
    ):
        assert torch.equal(torch.jit.trace(call, x)(x * 2), call(x * 2))


def test_fx_trace():
    """A symbolic trace of a swapped model holds the calls, and runs."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1))
    x = torch.randn(2, 3, 10, 10)
    expected = model(x)
    ap.torch.accelerate(model)
    graph = torch.fx.symbolic_trace(model)
    assert "Description" in graph.code
    torch.testing.assert_close(graph(x), expected)


def test_fake_and_meta_tensors():
    """Shapes, dtypes and strides without memory; the errors of real tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        for call in CALLS.values():
            real = tuples(call(distinct(2, 4, 8, 6, dtype=torch.float32)))
        x = torch.empty(2, 4, 8, 6)
        assert ap.max_pool2d(x, 2).shape == (2, 4, 4, 3)
        assert mode is not None
    for name, call in CALLS.items():
        x = distinct(2, 4, 8, 6, dtype=torch.float32).to(memory_format=torch.channels_last)
        for real, meta in zip(tuples(call(x)), tuples(call(x.to("meta"))), strict=True):
            assert (real.shape, real.stride(), real.dtype) == (meta.shape, meta.stride(), meta.dtype), name
    with pytest.raises(ValueError, match="must fit the input"):
        ap.max_pool2d(torch.empty(1, 1, 2, 2, device="meta"), 3)


def test_compile_of_vmap():
    """A compiled vmap runs by the operators' own batching rules."""
    torch._dynamo.reset()
    x = distinct(3, 2, 4, 6, 6, dtype=torch.float32)
    call = lambda t: ap.avg_pool2d(ap.max_pool2d(t, 2, 1), 2)  # noqa: E731
    mapped = torch.compile(torch.func.vmap(call), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(mapped, torch.func.vmap(call)(x))


@pytest.mark.parametrize(
    "call",
    [
        "ap.max_pool2d(x, 2)",
        "ap.max_pool2d(x, 2, mask=mask)",
        "ap.pool(x, 'median', (2, 2))",
        "ap.pool_tokens(x[0], 'mean', mask=mask[:2])",
        "ap.attention_pool(x[0], x[0, 0, 0])",
    ],
)
def test_the_first_call_of_a_program_may_be_a_compiled_one(call):
    """A compiler imports what tensors need while it traces, and must find what it looked at before unchanged."""
    program = (
        "import anypool as ap, torch\n"
        "x, mask = torch.ones(1, 2, 4, 4), torch.ones(4, 4, dtype=torch.bool)\n"
        f"f = torch.compile(lambda x, mask: {call}, fullgraph=True, backend='eager')\n"
        "print(torch.equal(f(x, mask), torch.ones_like(f(x, mask))))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stderr
