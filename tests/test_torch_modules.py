"""The modules of `anypool.nn`, and `anypool.torch`: into existing models and out again, leaving nothing behind."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest

import anypool as ap

torch = pytest.importorskip("torch", reason="torch is not installed")
nn, F = torch.nn, torch.nn.functional

THEIRS = sorted(n for n in dir(nn) if ("Pool" in n or "Unpool" in n) and n[-2:] in ("1d", "2d", "3d"))
ARGUMENTS = {
    "MaxPool": ((3, 2, 1), {"return_indices": True}, {"kernel_size": 2, "dilation": 2, "ceil_mode": True}),
    "AvgPool": ((3, 2, 1), {"ceil_mode": True}, {"kernel_size": 2, "count_include_pad": False}),
    "LPPool": ((2, 3), {"stride": 2}, {"norm_type": 3, "kernel_size": 2, "ceil_mode": False}),
    "AdaptiveMaxPool": ((3,), {"return_indices": True}, {"output_size": 1}),
    "AdaptiveAvgPool": ((3,), {}, {"output_size": 1}),
    "MaxUnpool": ((2,), {"stride": 2}, {"kernel_size": 2}),
    "FractionalMaxPool": ((2, 3), {"return_indices": True}, {"kernel_size": 2, "output_ratio": 0.5}),
}


def data(rank):
    return torch.randn(2, 3, *(9, 8, 8)[:rank], generator=torch.Generator().manual_seed(rank)).abs()


def pairs():
    """(theirs, ours) of every module of torch.nn, with several arguments each."""
    for name in THEIRS:
        args, more, other = ARGUMENTS[name[:-2]]
        for a, k in ((args, {}), (args, more), ((), other)):
            yield name, getattr(nn, name)(*a, **k), getattr(ap.nn, name)(*a, **k)


def test_every_module_of_torch():
    """Whatever torch.nn has: same signature, attributes, repr, state and result; pickled, copied and saved alike."""
    assert {n[:-2] for n in THEIRS} == set(ARGUMENTS)
    for name, theirs, ours in pairs():
        rank = int(name[-2])
        assert isinstance(ours, type(theirs))
        assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
        assert repr(ours) == repr(theirs)
        assert type(ours).__module__ == "anypool.nn"
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        x = (data(rank),)
        if name.startswith("MaxUnpool"):
            x = getattr(F, f"max_pool{rank}d")(data(rank)[..., :8, :8] if rank > 1 else data(1)[..., :8], 2,
                                               return_indices=True)  # fmt: skip
        torch.manual_seed(4)
        expected = theirs(*x)
        again = io.BytesIO()
        torch.save(ours, again)
        again.seek(0)
        for module in (
            ours,
            copy.deepcopy(ours),
            pickle.loads(pickle.dumps(ours)),
            torch.load(again, weights_only=False),
        ):
            assert type(module) is type(ours)
            torch.manual_seed(4)
            torch.testing.assert_close(module(*x), expected)


def test_names():
    assert set(THEIRS) < set(ap.nn.__all__)
    assert all(isinstance(getattr(ap.nn, n), type) for n in ap.nn.__all__)


OWN = {
    "MinPool": ((2,), {}),
    "LogSumExpPool": ((2,), {"r": 2.0}),
    "GlobalAvgPool": ((), {}),
    "GlobalMaxPool": ((), {}),
    "GeM": ((), {}),
    "AvgMaxPool": ((2,), {}),
    "CatAvgMaxPool": ((2,), {}),
    "BlurPool": ((), {}),
    "MaxBlurPool": ((), {}),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_modules_that_torch_lacks(name, rank):
    """Any rank; gradients; pickled; compiled; the repr names the arguments."""
    args, kwargs = OWN[name]
    module = getattr(ap.nn, name)(*args, **kwargs).double()
    x = data(rank).double().requires_grad_()
    y = module(x)
    assert y.shape[:2] == ((2, 6) if name == "CatAvgMaxPool" else (2, 3))
    assert torch.autograd.gradcheck(module, (x[:1, :, ..., :4].detach().requires_grad_(),))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), y)
    for argument in inspect.signature(type(module)).parameters:
        assert argument in repr(module).replace("(blur): BlurPool(kernel_size", "blur_size")
    if rank == 2:
        torch._dynamo.reset()
        assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(x), y)
    with pytest.raises(ValueError, match=f"{name} takes|takes \\(N, C, …\\)"):
        module(torch.ones(3, 4, dtype=torch.float64))


def test_values_that_are_known():
    x = data(2)
    assert torch.equal(ap.nn.MinPool(2, 1, return_indices=True)(x)[0], -F.max_pool2d(-x, 2, 1))
    assert torch.equal(ap.nn.MinPool(2, 1, return_indices=True)(x)[1], F.max_pool2d(-x, 2, 1, return_indices=True)[1])
    assert torch.equal(ap.nn.GlobalMaxPool(keepdims=False)(x), x.amax((2, 3)))
    torch.testing.assert_close(ap.nn.GlobalAvgPool()(x), x.mean((2, 3), keepdim=True))
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    torch.testing.assert_close(ap.nn.LogSumExpPool(2, r=3.0)(x), (3 * windows).logsumexp(-1) / 3)
    avg, largest = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    torch.testing.assert_close(ap.nn.AvgMaxPool()(x), 0.5 * (avg + largest))  # timm: adaptive_avgmax_pool2d
    torch.testing.assert_close(ap.nn.CatAvgMaxPool()(x), torch.cat((avg, largest), 1))  # adaptive_catavgmax_pool2d
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    weight = (taps[:, None] * taps).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=3)
    torch.testing.assert_close(ap.nn.BlurPool()(x), blurred)
    before = F.pad(F.max_pool2d(x, 2, 1), (1, 1, 1, 1), mode="reflect")
    torch.testing.assert_close(ap.nn.MaxBlurPool()(x), F.conv2d(before, weight, stride=2, groups=3))


def test_gem():
    """The paper's formula; between mean and maximum; p is learnt, and no gradient is NaN or infinite."""
    x = data(2)
    gem = ap.nn.GeM(p=3.0, eps=1e-6)
    torch.testing.assert_close(gem(x), x.clamp(min=1e-6).pow(3).mean((2, 3), keepdim=True).pow(1 / 3))
    torch.testing.assert_close(ap.nn.GeM(p=1.0)(x), x.mean((2, 3), keepdim=True))
    assert (ap.nn.GeM(p=300.0)(x) > 0.95 * x.amax((2, 3), keepdim=True)).all()
    assert [n for n, _ in gem.named_parameters()] == ["p"]
    assert gem.state_dict()["p"].shape == (1,)
    assert not list(ap.nn.GeM(learnable=False).parameters())
    assert ap.nn.GeM(keepdims=False)(x).shape == (2, 3)
    hard = torch.cat([torch.zeros(1, 1, 4), torch.full((1, 1, 4), 1e30), torch.full((1, 1, 4), -1.0)], 2)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        leaf, module = hard.clone().to(dtype).requires_grad_(), ap.nn.GeM(p=4.0)
        module(leaf).sum().backward()
        assert leaf.grad.isfinite().all()
        assert module.p.grad.isfinite().all()
        assert leaf.grad.dtype == dtype
    target, optimiser = x.amax((2, 3), keepdim=True), torch.optim.Adam(gem.parameters(), 0.5)
    for _ in range(20):
        optimiser.zero_grad()
        ((gem(x) - target) ** 2).sum().backward()
        optimiser.step()
    assert gem.p.item() > 4
    for bad in ({"p": 0.0}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="must be > 0"):
            ap.nn.GeM(**bad)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="stride must be an int >= 1, got 0"):
        ap.nn.BlurPool(3, 0)
    with pytest.raises(ValueError, match="padding_mode"):
        ap.nn.BlurPool(padding_mode="circular")
    with pytest.raises(ValueError, match="kernel_size must be >= 1"):
        ap.nn.MinPool(0)(data(2))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got builtins.str"):
        ap.torch.accelerate("model")


# ---- accelerate ------------------------------------------------------------------------------------------------------


class Quiet(nn.MaxPool2d):
    def forward(self, x):
        return x


def model():
    torch.manual_seed(0)
    shared = nn.MaxPool2d(2)
    replaced = nn.AvgPool2d(2)
    replaced.forward = lambda x: x
    return nn.ModuleDict({
        "conv": nn.Conv2d(3, 4, 3),
        "pool": shared,
        "again": shared,
        "deep": nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(4), nn.LPPool2d(2, 2)),
        "own": Quiet(2),
        "patched": replaced,
        "unpool": nn.MaxUnpool2d(2),
    })  # fmt: skip


def test_accelerate_and_restore():
    """Only the classes of plain modules change; hooks, mode, names, state and identity stay; and all comes back."""
    m = model().eval()
    before = {n: (id(c), type(c), c.training) for n, c in m.named_modules()}
    state = {k: v.clone() for k, v in m.state_dict().items()}
    seen = []
    m["pool"].register_forward_hook(lambda module, args, y: seen.append(y))
    m["pool"].note = "kept"
    text = repr(m)
    report = ap.torch.accelerate(m)
    assert list(report.replaced) == ["pool", "deep.0", "deep.2"]
    assert {n: why for n, (_, why) in report.kept.items()} == {
        "own": "a subclass of torch.nn.MaxPool2d",
        "patched": "its forward was replaced",
        "unpool": "anypool has nothing faster for it",
    }
    assert type(m["pool"]) is ap.nn.MaxPool2d is type(m["again"])
    assert m["pool"].note == "kept"
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(m["pool"](x), F.max_pool2d(x, 2))
    assert len(seen) == 1
    assert repr(m) == text
    assert {n: (id(c), c.training) for n, c in m.named_modules()} == {n: (i, t) for n, (i, _, t) in before.items()}
    assert m.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
    report.restore()
    report.restore()
    assert {n: (id(c), type(c), c.training) for n, c in m.named_modules()} == before


def test_reports_read_well():
    assert str(ap.torch.accelerate(model())) == (
        "3 pooling modules run on anypool:\n"
        "  pool     MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)\n"
        "  deep.0   AdaptiveAvgPool2d(output_size=2)\n"
        "  deep.2   LPPool2d(norm_type=2, kernel_size=2, stride=None, ceil_mode=False)\n"
        "3 left as they are:\n"
        "  own      Quiet: a subclass of torch.nn.MaxPool2d\n"
        "  patched  AvgPool2d: its forward was replaced\n"
        "  unpool   MaxUnpool2d: anypool has nothing faster for it"
    )
    assert "needs anypool.torch.install()" in str(ap.torch.accelerate(nn.Linear(1, 1)))
    assert str(ap.torch.accelerate(nn.MaxPool1d(2))).splitlines()[1].startswith("  (model)  MaxPool1d(")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's TorchScript is
def test_what_torchscript_compiled_is_kept():
    def compiled():
        return torch.jit.script(nn.Sequential(nn.MaxPool2d(2), nn.ReLU()))

    m = nn.ModuleDict({"own": nn.AvgPool2d(2), "deep": compiled(), "traced": torch.jit.trace(nn.MaxPool1d(2), data(1))})
    report = ap.torch.accelerate(m)
    assert list(report.replaced) == ["own"]
    assert {n: why for n, (_, why) in report.kept.items()} == dict.fromkeys(
        ("deep.0", "traced"), "compiled by TorchScript"
    )
    assert torch.equal(m["deep"](data(2)), F.max_pool2d(data(2), 2).relu())


def test_restore_leaves_what_somebody_else_has_put_there():
    m = nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2))
    report = ap.torch.accelerate(m)
    m[0].__class__ = Quiet
    report.restore()
    assert [type(c) for c in m] == [Quiet, nn.AvgPool2d]


def test_repeated_and_nested():
    """The second time there is nothing to do, and undoing it undoes nothing of the first."""
    m = model()
    first = ap.torch.accelerate(m)
    second = ap.torch.accelerate(m)
    assert not second.replaced
    assert second.kept["pool"][1] == "runs on anypool already"
    second.restore()
    assert type(m["pool"]) is ap.nn.MaxPool2d
    first.restore()
    assert type(m["pool"]) is nn.MaxPool2d
    with ap.torch.accelerate(m) as report, ap.torch.accelerate(m["deep"]):
        assert type(m["deep"][0]) is ap.nn.AdaptiveAvgPool2d
    assert not report.replaced
    assert type(m["deep"][0]) is nn.AdaptiveAvgPool2d


def test_a_swapped_model_is_pickled_and_copied():
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    x = torch.randn(1, 3, 8, 8)
    expected = m(x)
    ap.torch.accelerate(m)
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert type(twin[1]) is ap.nn.MaxPool2d
        assert torch.equal(twin(x), expected)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    fresh.load_state_dict(m.state_dict())
    assert torch.equal(fresh(x), expected)


# ---- install ---------------------------------------------------------------------------------------------------------


FUNCTIONS = [f"{f}{r}d" for f in ("max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool")
             for r in (1, 2, 3)]  # fmt: skip


def test_install_and_uninstall():
    """All functions are routed, by position and by name, for modules too; then PyTorch's own are back."""
    originals = {n: getattr(F, n) for n in FUNCTIONS}
    x = data(2)
    try:
        ap.torch.install()
        assert all(getattr(F, n).__module__ == "anypool.torch" for n in FUNCTIONS)
        y = F.max_pool2d(x.requires_grad_(), 2)
        assert "Select" in type(y.grad_fn).__name__
        assert torch.equal(
            F.max_pool2d(input=x, kernel_size=2, return_indices=True)[1],
            originals["max_pool2d"](x, 2, return_indices=True)[1],
        )
        assert "Linear" in type(nn.AvgPool2d(2)(x).grad_fn).__name__
        with pytest.raises(TypeError):
            F.max_pool2d([[1.0]], 2)
        ap.torch.install()
    finally:
        ap.torch.uninstall()
    assert {n: getattr(F, n) for n in FUNCTIONS} == originals
    ap.torch.uninstall()
    assert {n: getattr(F, n) for n in FUNCTIONS} == originals


def test_install_as_a_context():
    """The inner one ends without ending the outer one; an error ends both."""
    original = F.max_pool2d
    with ap.torch.install() as outer:
        routed = F.max_pool2d
        assert "on" in repr(outer)
        with ap.torch.install():
            pass
        assert F.max_pool2d is routed
    assert F.max_pool2d is original
    with pytest.raises(RuntimeError, match="stop"), ap.torch.install():
        raise RuntimeError("stop")
    assert F.max_pool2d is original


def test_installations_beside_each_other():
    """One that ends leaves the others on, in whatever order they end; one may be entered again."""
    original = F.max_pool2d
    first, second = ap.torch.install(), ap.torch.install()
    first.__exit__()
    assert "on" in repr(second)
    assert F.max_pool2d is not original
    second.__exit__()
    assert F.max_pool2d is original
    with first:
        assert F.max_pool2d is not original
    assert F.max_pool2d is original


@pytest.mark.parametrize("name", FUNCTIONS)
def test_install_with_classes_that_know_functions(name):
    """`__torch_function__` is asked about PyTorch's function, by which its tables know it, as without us."""
    size = int(name[-2])
    arguments = (2.0, 2) if name.startswith("lp") else (2,)
    seen = []

    class Asked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append((function, len(args), (kwargs or {}).get("return_indices", False)))
            return "handled"

    x = data(size).as_subclass(Asked)
    given = [{}, {"return_indices": True}] if "max" in name else [{}]
    for kwargs in given:
        assert getattr(F, name)(x, *arguments, **kwargs) == "handled"
    with ap.torch.install():
        for kwargs in given:
            assert getattr(F, name)(x, *arguments, **kwargs) == "handled"
    half = len(seen) // 2
    assert [f for f, *_ in seen[:half]] == [f for f, *_ in seen[half:]]


def test_a_graph_traced_while_installed_can_be_pickled():
    class Model(nn.Module):
        def forward(self, x):
            return F.max_pool2d(x, 2)

    x = data(2)
    with ap.torch.install():
        traced = torch.fx.symbolic_trace(Model())
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x), F.max_pool2d(x, 2))


@pytest.mark.parametrize("theirs", ap.nn.COUNTERPARTS, ids=lambda c: c.__name__)
def test_input_by_name(theirs):
    """All modules of torch.nn call it `input`."""
    rank = int(theirs.__name__[-2])
    if theirs.__name__.startswith("MaxUnpool"):
        pooled, indices = getattr(F, f"max_pool{rank}d")(data(rank), 2, return_indices=True)
        module, given = theirs(2), {"input": pooled, "indices": indices}
    else:
        more = {"output_size": 2} if theirs.__name__.startswith("Fractional") else {}
        module = theirs(2.0, 2) if theirs.__name__.startswith("LP") else theirs(2, **more)
        given = {"input": data(rank)}
    ours = copy.deepcopy(module)
    ours.__class__ = ap.nn.COUNTERPARTS[theirs]
    torch.manual_seed(0)
    wanted = module(**given)
    torch.manual_seed(0)
    torch.testing.assert_close(ours(**given), wanted)


def test_install_leaves_what_others_installed():
    """Somebody who routes the same function after us keeps it."""
    original, theirs = F.max_pool2d, lambda *a, **k: None
    ap.torch.install()
    try:
        F.max_pool2d = theirs
        ap.torch.uninstall()
        assert F.max_pool2d is theirs
    finally:
        ap.torch.uninstall()
        F.max_pool2d = original


def test_install_with_the_first_tensor():
    """PyTorch's own functions are known before any is routed: falling back does not go round in circles."""
    import subprocess
    import sys

    code = (
        "import torch, anypool\n"
        "with anypool.torch.install():\n"
        "    y = torch.nn.functional.max_pool2d(torch.ones(1, 1, 4, 4).to_mkldnn(), 2)\n"
        "    print(y.layout)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "torch._mkldnn\n", result.stderr


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ap.nn.BlurPool(2**62), ValueError, "kernel_size must be <= 1024"),  # the coefficients took for ever
        (lambda: ap.nn.GeM(p=torch.ones(2)), TypeError, "p must be a number"),
        (lambda: ap.nn.GeM(eps=1e300), ValueError, "eps must be > 0 and a number of float32"),
        (lambda: ap.nn.GeM(learnable=1), TypeError, "learnable must be a bool"),
        (lambda: ap.nn.CatAvgMaxPool()(1.5), TypeError, "CatAvgMaxPool takes a tensor"),
        (
            lambda: ap.nn.AvgMaxPool()(torch.ones(1, 2, 3, 3, 3, 3)),
            ValueError,
            r"^AvgMaxPool pools 1 to 3 axes, got x of shape \(1, 2, 3, 3, 3, 3\)$",
        ),
        (lambda: ap.nn.CatAvgMaxPool()(torch.ones(1, 2, 3, 3, 3, 3)), ValueError, "^CatAvgMaxPool pools 1 to 3 axes"),
        (
            lambda: ap.nn.BlurPool()(torch.ones(1, 2, 3, 3, 3, 3)),
            ValueError,
            r"^BlurPool pools 1 to 3 axes, got x of shape \(1, 2, 3, 3, 3, 3\)$",
        ),
        (lambda: ap.nn.AttentionPool(4, flatten=1), TypeError, "flatten must be a bool"),
        (lambda: ap.nn.AttentionPool(0), ValueError, "dim must be >= 1"),
        (lambda: ap.nn.AttentionPool(8)(torch.ones(1, 2, 7)), ValueError, r"x must have 8 features, got \(1, 2, 7\)"),
        (lambda: ap.nn.TokenPooling("men"), FileNotFoundError, "config must be a mode .*mean.* got 'men'"),
        (lambda: ap.nn.AttentiveStatsPool(False), TypeError, "dim must be an int"),
        (lambda: ap.nn.TokenPooling("mean", include_prompt=1), TypeError, "include_prompt must be a bool"),
        (
            lambda: ap.nn.TokenPooling("max")({"token_embeddings": torch.ones(1, 2, 3), "attention_mask": ((1, 1),)}),
            TypeError,
            "attention_mask must be a tensor",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_arguments_of_modules_are_checked(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_explain_of_tensors_takes_windows_without_inputs():
    assert ap.explain(ap.max_pool1d, torch.zeros(1, 1, 2), 2, padding=2, empty=0).backend == "reference"


def test_labels_that_do_not_count_leave_windows_empty():
    """`empty` was dropped beside `ignore`."""
    x = torch.tensor([[2, 2, 1, 1]], dtype=torch.uint8)
    for given in (x, x.numpy()):
        assert ap.pool(given, "mode", (1, 2), ignore=2, empty=9).tolist() == [[9, 1]]


def test_an_empty_batch_has_one_result():
    x = torch.zeros(0, 5, 30, 7, dtype=torch.bfloat16)
    mask = torch.ones(x.shape, dtype=torch.bool)
    y = ap.pool(x, "max", 1, stride=(3, 4), padding=1, ceil_mode=True, axes=(2, 3), mask=mask, empty=0)
    assert y.shape == (0, 5, 11, 2)
