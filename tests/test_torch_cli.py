"""``anypool bench-model``: a model before and after, in words, in JSON and as a picture; mistakes in one line."""

from __future__ import annotations

import json
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("typer", reason="the command line needs the extra `cli`")
pytest.importorskip("matplotlib", reason="the command line needs the extra `cli`")
Image = pytest.importorskip("PIL.Image", reason="the command line needs the extra `cli`")

from anypool import cli  # noqa: E402

MODEL = """
import torch
from torch.nn import functional as F

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.MaxPool2d(3, 2, 1)
    def forward(self, x):
        x = self.pool(self.conv(x))
        return F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1)

def broken():
    return torch.nn.Sequential(torch.nn.Linear(7, 7))

number = lambda: 3

class Named(Net):
    def forward(self, x):
        return {"scores": (super().forward(x), 0), "more": None}

class Without(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))
"""


@pytest.fixture(autouse=True)
def in_a_folder_with_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_of_test.py").write_text(MODEL)
    return tmp_path


@pytest.fixture
def run(capsys):
    def command(*arguments):
        status = cli.main(["bench-model", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return command


def test_words_and_a_picture(run):
    status, out, err = run(
        "nets_of_test:Net", "--shape", "2x3x32x32", "--seconds", "0.1", "--channels-last", "--show", "net.png"
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("nets_of_test:Net, 2×3×32×32 float32 channels_last, ")
    words = [line.split()[0] for line in lines[1:]]
    assert words == ["pooling", "pool", "call", "call", "all", "whole", "of", "saved", "largest"]
    assert "(adaptive_avg_pool2d)" in lines[4]
    with Image.open("net.png") as picture:
        assert picture.size[0] >= 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_json(run):
    status, out, _ = run(
        "nets_of_test:Net", "--shape", "2x3x32x32", "--seconds", "0.1", "--dtype", "bfloat16", "--json"
    )
    assert status == 0
    found = json.loads(out)
    assert [(v["name"], v["kind"], v["shape"]) for v in found["layers"]] == [
        ("pool", "MaxPool2d", [2, 8, 32, 32]),
        ("call 1", "avg_pool2d", [2, 8, 16, 16]),
        ("call 1", "adaptive_avg_pool2d", [2, 8, 8, 8]),
    ]
    assert all(v["seconds"][s] > 0 for v in found["layers"] for s in ("before", "after"))
    assert found["saved_bytes"]["after"] < found["saved_bytes"]["before"]
    assert found["difference"] < 0.02


def test_a_model_of_the_folder_that_returns_a_dictionary(run, in_a_folder_with_a_model, monkeypatch):
    """The folder is looked into as `python -m` does, and the first tensor is compared."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(in_a_folder_with_a_model)])
    (in_a_folder_with_a_model / "nets_of_here.py").write_text(MODEL)
    status, out, _ = run("nets_of_here:Named", "--shape", "2x3x32x32", "--seconds", "0.1", "--json")
    assert status == 0
    assert sys.path[0] == str(in_a_folder_with_a_model)
    found = json.loads(out)
    assert [v["kind"] for v in found["layers"]] == ["MaxPool2d", "avg_pool2d", "adaptive_avg_pool2d"]
    assert found["difference"] < 1e-6


def test_a_model_that_does_not_pool(run):
    status, out, err = run("nets_of_test:Without", "--shape", "2x3x8x8", "--seconds", "0.1", "--show", "net.png")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[1:]] == ["pooling", "whole", "of", "saved", "largest"]
    assert lines[3] == ["of", "it", "pooling", "0.0", "%", "0.0", "%"]
    with Image.open("net.png") as picture:
        assert picture.size[0] >= 1000


def test_a_saved_model(run):
    torch.save(torch.nn.Sequential(torch.nn.MaxPool1d(2)), "model.pt")
    status, out, _ = run("model.pt", "--trust", "--shape", "2x3x32", "--seconds", "0.1")
    assert status == 0
    assert "0 (MaxPool1d)" in out


class Hostile:
    """What a file can hold: loading it makes a file of its own."""

    def __reduce__(self):
        return open, ("it-ran", "w")


def test_no_code_of_a_file_runs_unless_it_is_trusted(run, in_a_folder_with_a_model):
    torch.save(Hostile(), "model.pt")
    status, out, err = run("model.pt")
    assert (status, out) == (2, "")
    assert err == (
        "anypool: MODEL model.pt is a file: loading it runs code that it names; if you trust it, add --trust\n"
    )
    assert not (in_a_folder_with_a_model / "it-ran").exists()


def test_the_help_says_what_trust_means(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "can run any code as it is loaded" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nets_of_test"], "MODEL must be a file of torch.save, or module:callable"),
        (["nets_of_test:Missing"], "has no attribute 'Missing'"),
        (["no_such_module:Net"], "No module named 'no_such_module'"),
        (["nets_of_test:number"], "MODEL must be a torch.nn.Module, got int"),
        (["nets_of_test:broken"], "fails on 8x3x224x224 float32"),
        (["nets_of_test:Net", "--shape", "3x3"], "--shape must be a batch, channels and 1 to 3 sizes"),
        (["nets_of_test:Net", "--dtype", "int8"], "--dtype must be float32, bfloat16 or float16, got int8"),
        (["nets_of_test:Net", "--shape", "2x3x8", "--channels-last"], "--channels-last needs a --shape of four sizes"),
        (["nets_of_test:Net", "--show", "net.txt"], "--show"),
        (["nets_of_test.py", "--trust"], "not a model of torch.save"),
    ],
)
def test_mistakes_are_one_line(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err
