"""Devices without a kernel of ours: PyTorch's own operator where it has one, torch operations for everything else.

The tests marked ``gpu`` run on one. The others make tensors of the CPU take the same way, so that it is walked
everywhere.
"""

from __future__ import annotations

import pytest

import anypool as ap

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

# (function, arguments, keywords, the backend of another device)
CALLS = [
    ("max_pool2d", (3, 2, 1), {}, "pytorch"),
    ("max_pool2d", (3, 2, 1), {"return_indices": True}, "pytorch"),
    ("max_pool2d", ((3, 2), None, (1, 0), (1, 2), True), {}, "pytorch"),
    ("max_pool2d", (3, 2, "same"), {}, "torch"),
    ("max_pool2d", (2, 1, 2), {"ceil_mode": False}, "torch"),  # a refusal, here and there
    ("max_pool2d", (3, 2, ((0, 1), (2, 0))), {"return_indices": True}, "torch"),
    ("avg_pool2d", (3, 2, 1), {}, "pytorch"),
    ("avg_pool2d", (3, 2, 1, True, False), {}, "pytorch"),
    ("avg_pool2d", (2,), {"divisor_override": 3}, "pytorch"),
    ("avg_pool2d", (2,), {"dilation": 2, "stride": 1}, "torch"),
    ("lp_pool2d", (3, 2), {}, "torch"),
    ("lp_pool2d", (float("inf"), 2), {}, "torch"),
    ("adaptive_avg_pool2d", ((3, None),), {}, "pytorch"),
    ("adaptive_max_pool2d", (3, True), {}, "pytorch"),
    ("global_avg_pool", (), {"keepdims": False}, "pytorch"),
    ("global_max_pool", (), {"return_indices": True}, "pytorch"),
    ("global_max_pool", (), {"return_indices": True, "keepdims": False}, "pytorch"),
    ("pool", ("min", (2, 2)), {"return_indices": True}, "torch"),
    ("pool", ("sum", 2), {"axes": (1, 3)}, "torch"),
    ("pool", ("mean", (3, 3)), {"padding": 1, "count_include_pad": False}, "torch"),
    ("pool", ("logsumexp", (3, 3)), {"stride": 1}, "torch"),
    ("max_pool2d", (2,), {"data_format": "channels_last"}, "torch"),
    ("avg_pool2d", (2,), {"dtype": torch.float64}, "torch"),
]
IDS = [f"{n} {a} {k}".replace("torch.", "") for n, a, k, _ in CALLS]
calls = pytest.mark.parametrize(("name", "args", "kwargs", "backend"), CALLS, ids=IDS)


def tuples(y):
    return y if isinstance(y, tuple) else (y,)


def outcome(name, args, kwargs, x):
    """Results and the gradient, or the error's class."""
    leaf = x.detach().requires_grad_(x.is_floating_point())
    try:
        y = tuples(getattr(ap, name)(leaf, *args, **kwargs))
    except ValueError as error:
        return [str(error).partition(" (x:")[0]]
    if not y[0].requires_grad:
        return [t.cpu() for t in y]
    g = torch.linspace(-1, 1, y[0].numel(), dtype=y[0].dtype, device=x.device).view(y[0].shape)
    (grad,) = torch.autograd.grad(y[0], leaf, g)
    return [t.detach().cpu() for t in (*y, grad)]


def check(name, args, kwargs, here, elsewhere):
    expected, got = outcome(name, args, kwargs, here), outcome(name, args, kwargs, elsewhere)
    for a, b in zip(got, expected, strict=True):
        if isinstance(a, str):
            assert a == b
        else:
            torch.testing.assert_close(a, b)


def distinct(*shape, dtype=torch.float32):
    n = torch.Size(shape).numel()
    return torch.randperm(n, generator=torch.Generator().manual_seed(n)).view(shape).to(dtype) / 8 + 0.1


@pytest.fixture
def far_away(monkeypatch):
    """Tensors of the CPU go the way of another device's."""
    from anypool import tensors

    def switch(on):
        monkeypatch.setattr(tensors, "PLAIN", frozenset() if on else plain)
        monkeypatch.setattr(tensors.plain, "elsewhere", lambda x: on)

    plain = tensors.PLAIN
    yield switch
    switch(False)


@calls
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_the_way_of_other_devices(name, args, kwargs, backend, last, far_away):
    """On the CPU: results, gradients and memory formats as those of the kernels; `explain` says what would run."""
    x = distinct(2, 4, 9, 8)
    x = x.to(memory_format=torch.channels_last) if last else x
    expected = outcome(name, args, kwargs, x)
    far_away(True)
    got = outcome(name, args, kwargs, x)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if isinstance(a, str):
            assert a == b
            continue
        torch.testing.assert_close(a, b)
        if i == 0 and a.ndim == 4:  # gradients lie as PyTorch's own backward passes leave them
            assert a.is_contiguous() == b.is_contiguous()
            assert a.is_contiguous(memory_format=torch.channels_last) == b.is_contiguous(
                memory_format=torch.channels_last
            )
    if not isinstance(got[0], str):
        e = ap.explain(getattr(ap, name), x, *args, **kwargs)
        assert e.backend == backend
        assert "native" in e.notes[0]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("indices", [False, True])
def test_global_poolings_that_pytorch_has_not(indices, keepdims, far_away):
    """Of integers, and of floats where algorithms must be deterministic."""
    x = torch.randperm(72).view(2, 4, 9)
    kwargs = {"keepdims": keepdims, "return_indices": indices}
    expected = outcome("global_max_pool", (), kwargs, x), outcome("global_max_pool", (), kwargs, x.float())
    far_away(True)
    got = outcome("global_max_pool", (), kwargs, x)
    torch.use_deterministic_algorithms(True)
    try:
        e = ap.explain(ap.global_max_pool, x.float(), **kwargs)
        floats = outcome("global_max_pool", (), kwargs, x.float())
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close((got, floats), expected, rtol=0, atol=0)
    assert torch.equal(got[0].flatten(), x.amax(-1).flatten())
    assert e.backend == "torch"
    assert e.notes[-1] == "pytorch: PyTorch's poolings have no deterministic gradients on cpu"


@pytest.mark.parametrize("rank", [2, 3])
def test_fractional_poolings_with_deterministic_gradients(rank, far_away):
    """The same draws, values and indices; the gradient is that of a gather."""
    x = distinct(2, 3, *(9, 8, 7)[:rank])
    samples = torch.rand(2, 3, rank, generator=torch.Generator().manual_seed(0))
    pool = getattr(ap, f"fractional_max_pool{rank}d")

    def found(indexed):
        leaf = x.clone().requires_grad_()
        y = tuples(pool(leaf, 2, output_size=3, return_indices=indexed, _random_samples=samples))
        (grad,) = torch.autograd.grad(y[0], leaf, torch.linspace(-1, 1, y[0].numel()).view(y[0].shape))
        return [t.detach() for t in (*y, grad)]

    expected = found(True)
    far_away(True)
    torch.use_deterministic_algorithms(True)
    try:
        got, alone = found(True), found(False)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(alone, [expected[0], expected[2]])


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")
    return torch.device("cuda")


@pytest.mark.gpu
@calls
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu(name, args, kwargs, backend, dtype, cuda):
    """Results and gradients as those of the CPU, and `explain` says what runs."""
    x = distinct(2, 4, 9, 8, dtype=dtype)
    check(name, args, kwargs, x, x.to(cuda))
    if name != "max_pool2d" or args[1:3] != (1, 2):
        e = ap.explain(getattr(ap, name), x.to(cuda), *args, **kwargs)
        assert (e.backend, e.isa) == (backend, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64], ids=str)
def test_integers_on_a_gpu(dtype, cuda):
    x = torch.randint(0, 9, (2, 3, 8, 8)).to(dtype)
    for name, args in (("max_pool2d", (3, 2, 1)), ("avg_pool2d", (2,)), ("pool", ("min", (2, 2)))):
        check(name, args, {}, x, x.to(cuda))


@pytest.mark.gpu
def test_models_on_a_gpu(cuda):
    """One line on a model that lives there: the same outputs, compiled too."""
    from networks import build

    for name in ("GoogLeNet", "Inception v3"):
        model, x = build(name).to(cuda), torch.randn(2, 3, 96, 96, device=cuda)
        expected = model(x)
        with ap.torch.accelerate(model), ap.torch.install():
            torch.testing.assert_close(model(x), expected)
            torch._dynamo.reset()
            torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.gpu
def test_modules_on_a_gpu(cuda):
    x = distinct(2, 3, 8, 8)
    for module in (ap.nn.MaxPool2d(2), ap.nn.MinPool(2), ap.nn.GeM(), ap.nn.AvgMaxPool(), ap.nn.MaxBlurPool()):
        torch.testing.assert_close(module.to(cuda)(x.to(cuda)).cpu(), module.cpu()(x))
