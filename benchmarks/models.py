"""Nine networks of torchvision before and after `anypool.torch`, side by side in one run: docs/models.md and a picture.

torchvision is in none of the project's environments: its packages name a CUDA build of PyTorch. Beside the CPU build,
without its own dependencies, it serves for this (0.28.0 goes with torch 2.13.0):

    pip install --no-deps --target .torchvision torchvision==0.28.0
    PYTHONPATH=.torchvision python -m benchmarks.models --out docs/models.md

Weights are random and nothing is downloaded. All nine networks in one process took more than 22 GB once. Results are
kept in a JSON file, so that a run can be made in pieces:
``python -m benchmarks.models GoogLeNet VGG-16`` measures these two and writes the page from all that is known;
``--keep-memory`` measures once more, for columns of their own, without page faults of the C library.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import anypool
from anypool.backends import native
from anypool.cli.models import AFTER, BEFORE, compare
from benchmarks.measure import machine, quiet
from benchmarks.report import table

NETWORKS = {
    "GoogLeNet": ("googlenet", 224, {"init_weights": False}),
    "SqueezeNet 1.1": ("squeezenet1_1", 224, {}),
    "ShuffleNet v2": ("shufflenet_v2_x1_0", 224, {}),
    "Inception v3": ("inception_v3", 299, {"init_weights": False}),
    "ResNet-18": ("resnet18", 224, {}),
    "AlexNet": ("alexnet", 224, {}),
    "DenseNet-121": ("densenet121", 224, {}),
    "VGG-16": ("vgg16", 224, {}),
    "ResNet-50": ("resnet50", 224, {}),
}
BATCHES = (8, 1)
DTYPES = ("float32", "bfloat16")
FORMATS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}
PICTURE = "pictures/models.png"
ABOUT = """What one line changes: `anypool.torch.accelerate(model)` for the modules, `anypool.torch.install()` for
networks that call functions (Inception v3, DenseNet-121). `python -m benchmarks.models` writes this page; see there for
what it needs.

Networks of torchvision with random weights, in evaluation mode and `torch.inference_mode`. Both states of one network
run in turn, again and again; times are the shortest, as whatever else a machine does only adds to them. *of it pooling*
is the part of the whole model's time that all its poolings take, measured in runs of their own. *saved* is what
autograd keeps for a backward pass, without the parameters. *difference* is the largest of the outputs, as a part of the
largest output.

Where pooling takes 1 or 2 % of the time, *×* says little about it: activations that the C library gives back to the
system are new memory in each pass, and how much of it depends on what else was allocated, PyTorch's int64 indices for
instance, and on the process. The last two columns are of processes in which it keeps what is freed
(`--keep-memory`: `MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` of 1000000000), before and after alike:
*× kept*, and the part of that network's time that pooling takes after.
"""

KEPT = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def torchvision() -> Any:
    """Return torchvision's models, without its own compiled library, which needs CUDA's."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # what it registers fakes for, without having defined it
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchvision.models
    return torchvision.models, library


def measured(names: list[str], seconds: float) -> Iterator[list[dict[str, Any]]]:
    """Measure networks in every batch, dtype and memory format; print each result as it comes, yield those of each."""
    if not names:
        return
    models, _library = torchvision()
    for name in names:
        found = []
        function, pixels, options = NETWORKS[name]
        torch.manual_seed(0)
        build: Callable[..., Any] = getattr(models, function)
        plain = build(weights=None, **options).eval()
        for dtype, form, batch in itertools.product(DTYPES, FORMATS, BATCHES):
            kind, layout = getattr(torch, dtype), FORMATS[form]
            model = plain.to(kind).to(memory_format=layout)
            x = torch.randn(batch, 3, pixels, pixels).to(kind).contiguous(memory_format=layout)
            quiet()
            result = compare(name, model, x, seconds)
            sums = {"share": result.share, "pooling": result.pooling}
            both = {name: {s: of(s) for s in (BEFORE, AFTER)} for name, of in sums.items()}
            found.append(result.to_dict() | {"memory_format": form, "kept": keeps_memory()} | both)
            print(line(found[-1]), flush=True)
            plain = plain.float()
        yield found


def keeps_memory() -> bool:
    """Whether the C library of this process keeps what is freed."""
    return all(os.environ.get(name) == value for name, value in KEPT.items())


def line(r: dict[str, Any]) -> str:
    """One result in one line of text."""
    return (
        f"{r['name']:15} {r['shape'][0]} {r['dtype']:8} {r['memory_format']:14} "
        f"{1e3 * r['seconds'][BEFORE]:8.1f} -> {1e3 * r['seconds'][AFTER]:8.1f} ms, {r['speed_up']:5.2f}x; "
        f"pooling {100 * r['share'][BEFORE]:5.1f} -> {100 * r['share'][AFTER]:4.1f} %; difference {r['difference']:.1e}"
    )


def cells(r: dict[str, Any]) -> list[str]:
    before, after = (r["seconds"][s] for s in (BEFORE, AFTER))
    return [
        r["name"], f"{1e3 * before:.1f}", f"{1e3 * after:.1f}", f"{r['speed_up']:.2f}",
        f"{100 * r['share'][BEFORE]:.1f} %", f"{100 * r['share'][AFTER]:.1f} %",
        f"{r['pooling'][BEFORE] / r['pooling'][AFTER]:.1f}",
        f"{r['saved_bytes'][BEFORE] / 1e6:.0f}", f"{r['saved_bytes'][AFTER] / 1e6:.0f}", f"{r['difference']:.0e}",
    ]  # fmt: skip


HEAD = [
    "network",
    "before, ms",
    "after, ms",
    "×",
    "of it pooling",
    "after",
    "× pooling",
    "saved, MB",
    "after",
    "difference",
    "× kept",
    "pooling",
]


def environment() -> str:
    info = native.info()
    return (
        f"Machine: {machine()}. anypool {anypool.__version__} ({info['isa']}, {info['threads']} threads), "
        f"torch {torch.__version__}."
    )


def page(results: list[dict[str, Any]]) -> str:
    """Return docs/models.md."""
    lines = ["# Models", "", ABOUT, environment(), "", f"![Models before and after]({PICTURE})", ""]
    for dtype, form, batch in itertools.product(DTYPES, FORMATS, BATCHES):
        if rows := rows_of(results, dtype, form, batch):
            kept = {r["name"]: r for r in rows_of(results, dtype, form, batch, kept=True)}
            texts = [[*cells(r), *kept_cells(kept.get(r["name"]))] for r in rows]
            lines += [f"## Batch {batch}, {dtype}, {form}", "", *table(HEAD, texts), ""]
    return "\n".join(lines)


def rows_of(results: list[dict[str, Any]], dtype: str, form: str, batch: int, kept: bool = False) -> list[Any]:
    wanted = dtype, form, batch, kept
    return [r for r in results if (r["dtype"], r["memory_format"], r["shape"][0], r.get("kept", False)) == wanted]


def kept_cells(r: dict[str, Any] | None) -> list[str]:
    return ["", ""] if r is None else [f"{r['speed_up']:.2f}", f"{100 * r['share'][AFTER]:.1f} %"]


def excerpt(text: str, results: list[dict[str, Any]]) -> str:
    """Return the README with the best known rows between its marks."""
    start, end = "<!-- models:start -->", "<!-- models:end -->"
    before, rest = text.split(start)
    rows = rows_of(results, "float32", "channels_first", 8)
    shown = table(
        ["network, batch 8, float32", "PyTorch, ms", "after, ms", "×", "pooling, of the time", "after"],
        ([*cells(r)[:4], *cells(r)[4:6]] for r in rows),
    )
    return "\n".join([before + start, *shown, "", environment(), end + rest.split(end)[1]])


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Draw, for each network at batch 8 in float32, pooling and all else before and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, form in zip(panels, FORMATS, strict=True):
        rows = rows_of(results, "float32", form, 8)
        for i, r in enumerate(rows):
            for offset, at, colour in ((-0.2, BEFORE, "#d62728"), (0.2, AFTER, "#1f77b4")):
                whole = 100 * r["seconds"][at] / r["seconds"][BEFORE]
                pooled = whole * r["share"][at]
                axis.barh(i + offset, whole - pooled, 0.38, color="#dddddd")
                label = {BEFORE: "pooling, PyTorch", AFTER: "pooling, anypool"}[at] if i == 0 else None
                axis.barh(i + offset, pooled, 0.38, left=whole - pooled, color=colour, label=label)
            axis.annotate(f"{r['speed_up']:.2f}×", (1 + max(100, 100 / r["speed_up"]), i), va="center", fontsize=9)
        axis.set_yticks(range(len(rows)), [r["name"] for r in rows])
        axis.set(title=f"float32, batch 8, {form}", xlabel="time, % of the model on PyTorch alone")
        axis.set_xlim(0, 15 + max(100, *(100 / r["speed_up"] for r in rows)))
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--out", type=Path, help="the page to write; a picture and the README's excerpt come with it")
    parser.add_argument("--json", type=Path, default=Path("build/models.json"), help="where results are kept")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each row")
    parser.add_argument("--keep-memory", action="store_true", help="as if the C library kept all memory that is freed")
    options = parser.parse_args()
    if options.keep_memory and not keeps_memory():  # which it asks the environment about as it begins
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.models", *sys.argv[1:]], os.environ | KEPT)
    if unknown := set(options.names) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(unknown)}")
    known = json.loads(options.json.read_text()) if options.json.exists() else []
    names = options.names or ([] if known and options.out else list(NETWORKS))
    results = [r for r in known if r["name"] not in names or r.get("kept", False) != keeps_memory()]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for found in measured(names, options.seconds):
        results = sorted(results + found, key=lambda r: list(NETWORKS).index(r["name"]))
        options.json.write_text(json.dumps(results))  # at once: the next network may take more memory than there is
    if options.out:
        picture(results, options.out.parent / PICTURE)
        options.out.write_text(page(results))
        readme = Path("README.md")
        readme.write_text(excerpt(readme.read_text(), results))


if __name__ == "__main__":
    main()
