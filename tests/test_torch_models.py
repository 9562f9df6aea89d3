"""Whole models: the same outputs after one line, the same loss curve in training, and back again."""

from __future__ import annotations

import pytest

import anypool as ap

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from networks import NETWORKS, build  # noqa: E402  needs torch

FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
by_network = pytest.mark.parametrize("name", NETWORKS)


def images(name, n, dtype, form):
    pixels = NETWORKS[name][1]
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, pixels, pixels, generator=generator).to(dtype).contiguous(memory_format=form)


def after_each_pooling(model, x):
    """The outputs of every pooling module, in the order they run, with their inputs."""
    seen = []
    pooling = [m for m in model.modules() if isinstance(m, tuple(ap.nn.COUNTERPARTS))]
    handles = [m.register_forward_hook(lambda m, args, y: seen.append((m, args[0], y))) for m in pooling]
    with torch.inference_mode():
        model(x)
    for h in handles:
        h.remove()
    return seen


@by_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("batch", [8, 1])
def test_outputs_are_equal(name, dtype, form, batch):
    """Every pooling gives what PyTorch's gives for the same input, max exactly; the whole model agrees with float64."""
    x = images(name, batch, dtype, FORMATS[form])
    model = build(name).to(dtype).to(memory_format=FORMATS[form])
    with torch.inference_mode():
        expected = model(x)
    report = ap.torch.accelerate(model)
    _, _, modules, functions = NETWORKS[name]
    assert (len(report.replaced), report.kept) == (modules, {})
    seen = after_each_pooling(model, x)
    assert len(seen) >= modules
    for module, given, y in seen:
        wide = given.double() if "Avg" in type(module).__name__ and dtype is torch.bfloat16 else given
        theirs = type(module).__mro__[1].forward(module, wide).to(dtype)
        if "Max" in type(module).__name__:
            assert torch.equal(y, theirs)
        else:
            torch.testing.assert_close(y, theirs)
        assert y.is_contiguous() == theirs.is_contiguous()
    calls = []
    with ap.torch.install(), torch.inference_mode():
        routed = {n: getattr(nn.functional, n) for n in ("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d")}
        for n, function in routed.items():
            setattr(nn.functional, n, lambda *a, f=function, **k: (calls.append(f), f(*a, **k))[1])
        try:
            got = model(x)
        finally:
            for n, function in routed.items():
                setattr(nn.functional, n, function)
    assert len(calls) == functions
    # bfloat16 activations differ by a rounding here and there, which the layers behind amplify
    torch.testing.assert_close(got, expected, **({"rtol": 0.1, "atol": 0.02} if dtype is torch.bfloat16 else {}))
    report.restore()
    with torch.inference_mode():
        assert torch.equal(model(x), expected)


@by_network
def test_gradients_are_equal(name):
    """One step in training mode: the gradient of every parameter."""
    x = images(name, 4, torch.float32, torch.contiguous_format)

    def gradients(model):
        torch.manual_seed(0)
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        return {n: p.grad for n, p in model.named_parameters()}

    expected = gradients(build(name).train())
    model = build(name).train()
    with ap.torch.accelerate(model), ap.torch.install():
        got = gradients(model)
    for n, grad in expected.items():
        torch.testing.assert_close(got[n], grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=n: f"{n}: {m}")


class Small(nn.Module):
    """Two convolutions with a max and a mean between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.pool, self.mean, self.out = nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Linear(64, 4)
        self.last = nn.AdaptiveAvgPool2d(2)

    def forward(self, x):
        x = self.pool(nn.functional.relu(self.first(x)))
        x = self.mean(nn.functional.relu(self.second(x)))
        return self.out(torch.flatten(self.last(x), 1))


def train(swap):
    """Loss after every step, and the bytes that autograd saved in the first."""
    torch.manual_seed(1)
    model = Small()
    if swap:
        ap.torch.accelerate(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(64) % 4
    x = 0.3 * torch.randn(64, 1, 16, 16, generator=generator)
    for image, quarter in zip(x, labels, strict=True):  # one bright quarter for each class
        image[:, 8 * (quarter // 2) :, 8 * (quarter % 2) :][:, :8, :8] += 1
    losses, saved = [], {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    for step in range(60):
        optimiser.zero_grad()
        if step == 0:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                loss = nn.functional.cross_entropy(model(x), labels)
        else:
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses), sum(saved.values())


def test_the_same_loss_curve_with_less_memory():
    """Sixty steps of training: the same losses, lower at the end, and fewer saved bytes."""
    (theirs, their_bytes), (ours, our_bytes) = train(False), train(True)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert ours[-1] < 0.2 * ours[0]
    assert our_bytes < 0.9 * their_bytes


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["GoogLeNet", "Inception v3"])
def test_accelerated_models_compile_and_export(name):
    """One graph, the same numbers."""
    torch._dynamo.reset()
    model, x = build(name), images(name, 2, torch.float32, torch.contiguous_format)
    expected = model(x)
    with ap.torch.accelerate(model), ap.torch.install():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        program = torch.export.export(model, (x,))
    assert "anypool.pool" in program.graph_module.code
    assert "aten.max_pool2d" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x), expected)
