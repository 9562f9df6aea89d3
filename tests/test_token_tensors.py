"""Token pooling of tensors: the arrays' bits, autograd, compile, nested tensors."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import anypool as ap  # noqa: E402
import token_cases  # noqa: E402
import token_oracle  # noqa: E402
import tolerance  # noqa: E402

LENGTHS = (70, 1, 0, 16, 33, 5)
COMPILES = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecated


def tensors_of(laid):
    """A layout's arguments as tensors; integers of both widths, masks of every kind."""
    x = [torch.from_numpy(a.copy()) for a in laid.x] if isinstance(laid.x, list) else torch.from_numpy(laid.x)
    kwargs = {}
    for name, value in laid.kwargs.items():
        kwargs[name] = value if isinstance(value, (int, str)) else torch.as_tensor(np.asarray(value))
    return x, kwargs


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", [*token_oracle.NAMES, ["mean", "max", "std"]])
def test_tensors_equal_arrays_to_the_bit(backend, name, dtype):
    rows = token_cases.rows_of(LENGTHS, 9, dtype, seed=2)
    k = 3 if isinstance(name, list) else 1
    grads = np.random.default_rng(4).standard_normal((len(rows), 9 * k)).astype(dtype)
    for laid in token_cases.layouts(rows):
        y, pullback = ap.vjp(ap.pool_tokens, laid.x, name, **laid.kwargs)
        wanted = pullback(grads.reshape(y.shape))
        x, kwargs = tensors_of(laid)
        leaves = x if isinstance(x, list) else [x]
        for t in leaves:
            t.requires_grad_()
        got = ap.pool_tokens(x, name, **kwargs)
        got.backward(torch.from_numpy(grads.reshape(y.shape)))
        assert tolerance.same_bits(got.detach().numpy(), y), laid.name
        for a, b in zip(leaves, wanted if isinstance(x, list) else [wanted], strict=True):
            assert tolerance.same_bits(a.grad.numpy(), np.ascontiguousarray(b)), laid.name
        with torch.no_grad():
            assert tolerance.same_bits(ap.pool_tokens(x, name, **kwargs).numpy(), y), laid.name


@pytest.mark.parametrize("name", token_oracle.NAMES)
def test_bfloat16(name):
    """Without ml_dtypes: the kernels read the tensor's memory, PyTorch rounds the result."""
    x = torch.randn(4, 50, 17, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).requires_grad_()
    mask = torch.rand(4, 50, generator=torch.Generator().manual_seed(1)) < 0.6
    wide = x.detach().float().requires_grad_()
    y, exact = ap.pool_tokens(x, name, mask=mask), ap.pool_tokens(wide, name, mask=mask)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, exact.to(torch.bfloat16))
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    y.backward(g)
    exact.backward(g.float())
    assert torch.equal(x.grad, wide.grad.to(torch.bfloat16))


def test_nested_jagged():
    rows = [torch.from_numpy(r) for r in token_cases.rows_of((4, 1, 7), 6, "float32")]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)
    y = ap.pool_tokens(nested, "mean")
    assert torch.equal(y, ap.pool_tokens(rows, "mean"))
    g = torch.arange(18.0).reshape(3, 6)
    y.backward(g)
    for grad, row, part in zip(nested.grad.unbind(), rows, g, strict=True):
        assert torch.equal(grad, (part / len(row)).expand_as(row))
    narrowed = torch.nested.narrow(
        torch.stack([rows[2], rows[2] + 1]), 1, torch.tensor([0, 2]), torch.tensor([3, 5]), layout=torch.jagged
    )
    wanted = torch.stack([rows[2][:3].sum(0), (rows[2] + 1)[2:7].sum(0)])
    torch.testing.assert_close(ap.pool_tokens(narrowed, "sum"), wanted)
    with pytest.raises(ValueError, match="mask is for one dense tensor"):
        ap.pool_tokens(nested, "mean", mask=torch.ones(3, 7))


@pytest.mark.parametrize("name", ["mean", "sum", "std", ["mean", "std"]])
def test_weights_have_gradients(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.rand(3, 6, dtype=torch.float64, generator=generator) + 0.1
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    weights.requires_grad_()
    torch.autograd.gradcheck(lambda a, w: ap.pool_tokens(a, name, mask=mask, weights=w), (x, weights))
    spans = torch.tensor([[[0, 6], [2, 5]], [[1, 4], [0, 3]], [[5, 6], [0, 2]]])
    if name != "std" and name != ["mean", "std"]:  # a span of one token has no direction in which its std grows
        torch.autograd.gradcheck(lambda a, w: ap.pool_tokens(a, name, spans=spans, weights=w), (x, weights))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("heads", [None, 3])
def test_attention(backend, heads, separate):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    query = torch.randn(*([heads] if heads else []), 4, dtype=torch.float64, generator=generator, requires_grad=True)
    values = torch.randn(3, 6, 5, dtype=torch.float64, generator=generator, requires_grad=True) if separate else None
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    inputs = (x, query, values) if separate else (x, query)
    torch.autograd.gradcheck(lambda a, q, v=None: ap.attention_pool(a, q, values=v, mask=mask), inputs)
    scores = x @ query.reshape(-1, 4).T / 2
    p = scores.masked_fill(~mask.bool()[..., None], -torch.inf).softmax(1)
    wanted = p.transpose(1, 2) @ (values if separate else x)
    got = ap.attention_pool(*inputs[:2], values=values, mask=mask)
    torch.testing.assert_close(got, wanted if heads else wanted[:, 0])


@COMPILES
@pytest.mark.parametrize("layout", ["mask", "lengths", "offsets", "spans"])
def test_compiled_without_a_break(layout):
    x = torch.randn(4, 30, 8, requires_grad=True)
    packed = torch.randn(60, 8, requires_grad=True)
    kwargs = {
        "mask": torch.rand(4, 30) < 0.5,
        "lengths": torch.tensor([3, 0, 30, 9]),
        "offsets": torch.tensor([0, 10, 10, 60]),
        "spans": torch.tensor([[0, 5], [3, 60]]),
    }[layout]
    data = packed if layout in ("offsets", "spans") else x

    def model(x, where):
        return ap.pool_tokens(x.sin(), ["mean", "max", "std"], empty=0.0, **{layout: where}).cos()

    compiled = torch.compile(model, fullgraph=True)
    results = []
    for f in (model, compiled):
        data.grad = None
        y = f(data, kwargs)
        y.sum().backward()
        results.append((y.detach(), data.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


@COMPILES
def test_attention_compiled_without_a_break():
    x, query = torch.randn(4, 30, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    mask = torch.ones(4, 30)
    compiled = torch.compile(lambda a, q: ap.attention_pool(a * 2, q, mask=mask).sum(), fullgraph=True)
    compiled(x, query).backward()
    grads = x.grad, query.grad
    x.grad = query.grad = None
    ap.attention_pool(x * 2, query, mask=mask).sum().backward()
    torch.testing.assert_close(grads, (x.grad, query.grad))


@pytest.mark.parametrize("name", ["mean", "max", "std"])
def test_operators_are_what_pytorch_expects(name):
    x = torch.randn(3, 5, 4, requires_grad=True)
    seen = ("mask", torch.ones(3, 5), "right", 0, 0, None)
    arguments = (x, name, *seen, None, -1.0, 1.0, 1e-6, 0.0)
    torch.library.opcheck(torch.ops.anypool_tokens.reduce_known.default, arguments)
    torch.library.opcheck(torch.ops.anypool_tokens.reduce.default, (x.detach(), *arguments[1:]))
    torch.library.opcheck(
        torch.ops.anypool_tokens.attend.default, (x, torch.randn(4, requires_grad=True), None, *seen, 0.5, 0.0)
    )


def test_shapes_of_tensors_that_are_fake():
    from torch._subclasses import FakeTensorMode

    x, ids = torch.ones(6, 4), torch.tensor([0, 0, 2, 2, 2, 4])
    for name, width in (("sum", 4), (["mean", "std"], 8)):
        wanted = ap.pool_tokens(x, name, segment_ids=ids, num_segments=5, empty=0.0)
        with FakeTensorMode() as mode:
            leaf = mode.from_tensor(x).requires_grad_()
            y = ap.pool_tokens(leaf, name, segment_ids=mode.from_tensor(ids), num_segments=5, empty=0.0)
            assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype) == ((5, width), torch.float32)
            (grad,) = torch.autograd.grad(y.sum(), leaf)
            assert (grad.shape, grad.dtype) == (x.shape, x.dtype)


@COMPILES
@pytest.mark.parametrize("how", ["traced", "compiled"])
def test_sizes_that_are_symbols(how):
    """The number of segments and the prefix may be sizes of tensors, which a tracer and a compiler do not know."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def model(x, ids, like, batch, prefix):
        segments = ap.pool_tokens(x, "sum", segment_ids=ids, num_segments=like.shape[0], empty=0.0)
        return segments, ap.pool_tokens(batch, "mean", exclude_prefix=prefix.shape[0], empty=0.0)

    def arguments(rows, segments, prefix):
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))
        ids = torch.arange(rows) * segments // rows
        return x, ids, torch.empty(segments + 1), x.view(2, -1, 4), torch.empty(prefix)

    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    for sizes in ((6, 3, 2), (10, 4, 3), (14, 7, 6)):
        x, ids, like, batch, prefix = arguments(*sizes)
        run = make_fx(model, tracing_mode="symbolic")(*arguments(*sizes)) if how == "traced" else compiled
        segments, means = run(x, ids, like, batch, prefix)
        assert segments.shape == (len(like), 4)
        torch.testing.assert_close(segments, torch.zeros(len(like), 4).index_add(0, ids, x))
        torch.testing.assert_close(means, batch[:, len(prefix) :].mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_bad_arguments():
    x = torch.ones(2, 3, 4)
    parts = [x[0], x[1, :2]]
    for nested, got in (
        (torch.nested.nested_tensor(parts), "torch.strided with 3 dimensions"),
        (torch.nested.nested_tensor([x, x], layout=torch.jagged), "torch.jagged with 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=rf"nested x must be jagged, \(rows, tokens, features\), got {got}"):
            ap.pool_tokens(nested, "mean")
    for flat, rule in (
        (torch.ones(4), "at least 2 dimensions, tokens and"),
        (torch.ones(3, 0), "at least one feature in"),
    ):
        with pytest.raises(ValueError, match=rf"x must have {rule} .*, got \d \(x: "):
            ap.attention_pool(flat, torch.ones(4))
    with pytest.raises(ValueError, match="mask must be on the device of x, cpu, got meta"):
        ap.pool_tokens(x, "mean", mask=torch.ones(2, 3, device="meta"))
    alike = r"x must be a list of tensors \(tokens, 4\) of dtype torch.float32 on cpu, got "
    for second, got in (
        (torch.ones(2, 5), r"\(2, 5\) torch.float32 on cpu at 1"),
        (torch.ones(4), r"\(4,\) torch.float32 on cpu at 1"),
        (torch.ones(2, 4, dtype=torch.float64), r"\(2, 4\) torch.float64 on cpu at 1"),
        (torch.ones(2, 4, device="meta"), r"\(2, 4\) torch.float32 on meta at 1"),
    ):
        with pytest.raises(ValueError, match=alike + got):
            ap.pool_tokens([x[0], second], "mean")
    with pytest.raises(TypeError, match="x must be a list of tensors, got ndarray at 1"):
        ap.pool_tokens([x[0], np.ones((2, 4), np.float32)], "mean")
    with pytest.raises(ValueError, match=r"x must be a list of tensors \(tokens, features\), got \(4,\) at 0"):
        ap.attention_pool([torch.ones(4), torch.ones(4)], torch.ones(4))
    for values, got in (
        ("ab", "a tensor or a list of tensors, got 'ab'"),
        ([x[0], 3], "a list of tensors, got int at 1"),
    ):
        with pytest.raises(TypeError, match=f"values must be {got}"):
            ap.attention_pool(x, torch.ones(4), values=values)
    with pytest.raises(TypeError, match=r"x must be float16, bfloat16, float32 or float64, got torch\.int64"):
        ap.pool_tokens(x.long(), "mean")
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 3\)"):
        ap.pool_tokens(x, "mean", mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="x must have at least 2 dimensions"):
        ap.pool_tokens(torch.ones(3), "mean")
    with pytest.raises(NotImplementedError, match="dtype is for arrays"):
        ap.pool_tokens(x, "mean", dtype=torch.float64)
    with pytest.raises(ValueError, match="only one of"):
        ap.pool_tokens(x, "mean", mask=torch.ones(2, 3), lengths=[1, 2])


def test_a_class_of_somebody_sees_the_operator() -> None:
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.randn(2, 3, 4)
    y = ap.pool_tokens(x.as_subclass(Watched), "mean")
    assert isinstance(y, Watched)
    assert any("anypool_tokens.reduce" in name for name in seen)
    assert torch.equal(y.as_subclass(torch.Tensor), ap.pool_tokens(x, "mean"))
