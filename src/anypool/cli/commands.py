"""The commands `pool`, `tokens`, `demo`, `info` and `bench-model`: arguments in, one readable line (or JSON) out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import anypool as ap
from anypool.cli import arguments, files, timing
from anypool.cli.files import Array, InputError, Source
from anypool.token_reductions import TOKEN_REDUCTIONS

FIGURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")

In = Annotated[
    str,
    typer.Argument(
        metavar="IN", help="Image (PNG, JPEG, TIFF), .npy, .npz, or data.npz:NAME for one array of several."
    ),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="File to write; its extension names the format.")]
Op = Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(arguments.OPERATIONS)}.")]
Kernel = Annotated[str, typer.Option(metavar="SIZE", help="Window: 2, 3x3, 2x2x2.")]
Stride = Annotated[str | None, typer.Option(metavar="SIZE", help="Step between windows; default the kernel.")]
Padding = Annotated[
    str,
    typer.Option(metavar="SIZE", help=f"1, 1x0, per side 1:2x0:1, or {', '.join(arguments.NAMED_PADDINGS)}."),
]
Dilation = Annotated[str, typer.Option(metavar="SIZE", help="Step between the elements of one window.")]
Ceil = Annotated[bool, typer.Option("--ceil", help="Keep a last window that hangs over the edge.")]
Axes = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Axes to pool, as 0,1; default height and width, or an array's last two."),
]
NormType = Annotated[str | None, typer.Option(metavar="P", help="The p of lp; default 2; inf is max |x|.")]
Sharpness = Annotated[
    str | None, typer.Option("--r", metavar="R", help="The sharpness of logsumexp and softmax; default 1.")
]
Quantile = Annotated[str | None, typer.Option("--q", metavar="Q", help="Which quantile, from 0 to 1.")]
Correction = Annotated[str | None, typer.Option(metavar="C", help="std and var divide by n - C; default 0.")]
Ignore = Annotated[str | None, typer.Option(metavar="LIST", help="Values that mode does not count, as 0,255.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of the draws of stochastic, which needs one.")]
IncludePad = Annotated[bool | None, typer.Option(help="Whether a mean counts padding as zeros; default yes.")]
Dtype = Annotated[str | None, typer.Option(metavar="NAME", help="Dtype of the result, as float32.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Show = Annotated[str | None, typer.Option(metavar="FIG.png", help="Draw a few windows and the outputs they make.")]
Folder = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures; made if missing.")]

TokensIn = Annotated[
    str,
    typer.Argument(metavar="IN", help=".npy, .npz, .safetensors (x; mask, lengths or offsets), .parquet, .arrow."),
]
TokensOut = Annotated[str, typer.Argument(metavar="OUT", help="File to write: .npy or .parquet.")]
Mode = Annotated[
    str, typer.Option(metavar="NAME", help=f"One of {', '.join(TOKEN_REDUCTIONS)}, or several with commas.")
]
MaskFile = Annotated[str | None, typer.Option(metavar="FILE.npy", help="Which tokens count, 0 or 1 for each.")]
LengthsFile = Annotated[str | None, typer.Option(metavar="FILE.npy", help="Tokens of each row; the rest is padding.")]
OffsetsFile = Annotated[str | None, typer.Option(metavar="FILE.npy", help="Where the rows of packed tokens begin.")]
Column = Annotated[str | None, typer.Option(metavar="NAME", help="The table's column of vectors, if not the only one.")]
Prefix = Annotated[int | None, typer.Option(metavar="N", help="Leave out each row's first N tokens, a prompt.")]
Batch = Annotated[int, typer.Option(metavar="ROWS", help="Rows of a table read at a time.")]

app = typer.Typer(
    help="Pooling for images and arrays: max, mean, lp, ... over windows of any size.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"anypool {ap.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def pool(
    source_path: In,
    target_path: Out,
    op: Op = "max",
    kernel: Kernel = "2",
    stride: Stride = None,
    padding: Padding = "0",
    dilation: Dilation = "1",
    ceil: Ceil = False,
    axes: Axes = None,
    norm_type: NormType = None,
    r: Sharpness = None,
    q: Quantile = None,
    correction: Correction = None,
    ignore: Ignore = None,
    seed: Seed = None,
    count_include_pad: IncludePad = None,
    dtype: Dtype = None,
    as_json: Json = False,
    show: Show = None,
) -> None:
    """Pool an image or an array.

    An image keeps its mode and is pooled over height and width, each channel (alpha too) on its own.
    """
    size = arguments.sizes("--kernel", kernel)
    options = {
        "stride": None if stride is None else arguments.sizes("--stride", stride),
        "padding": arguments.padding_sizes(padding),
        "dilation": arguments.sizes("--dilation", dilation),
        "ceil_mode": ceil,
        "dtype": None if dtype is None else arguments.dtype_named(dtype),
        **arguments.operation_options(
            op,
            norm_type=norm_type,
            r=r,
            q=q,
            correction=correction,
            ignore=ignore,
            seed=seed,
            count_include_pad=count_include_pad,
        ),
    }
    target, figure = _outputs(source_path, target_path, show)
    source = files.read(source_path)
    files.check_archive(target, source_path, source)
    options["axes"] = arguments.pooled_axes(axes, size, source)
    report = _pool(source, target, figure, op, size, options)
    report["input"]["path"] = source_path
    for note in source.notes:
        typer.echo(f"anypool: note: {source_path}: {note}", err=True)
    typer.echo(json.dumps(report, allow_nan=False) if as_json else _line(report))


@app.command()
def tokens(
    source_path: TokensIn,
    target_path: TokensOut,
    mode: Mode = "mean",
    mask: MaskFile = None,
    lengths: LengthsFile = None,
    offsets: OffsetsFile = None,
    column: Column = None,
    exclude_prefix: Prefix = None,
    norm_type: NormType = None,
    r: Sharpness = None,
    batch: Batch = 1024,
    as_json: Json = False,
) -> None:
    """Pool token vectors to one vector a row: mean, max, last, ... of the tokens that count."""
    from anypool.cli import tokens as token_files

    target = files.check_output(target_path, "OUT", token_files.OUTPUTS)
    options: dict[str, Any] = {}
    if exclude_prefix is not None:
        options["exclude_prefix"] = exclude_prefix
    if norm_type is not None:
        options["norm_type"] = arguments.number("--norm-type", norm_type)
    if r is not None:
        options["r"] = arguments.number("--r", r)
    if batch < 1:
        raise InputError(f"--batch must be >= 1, got {batch}")
    layout = {"mask": mask, "lengths": lengths, "offsets": offsets}
    done = token_files.run(source_path, target, mode.split(","), layout, column, batch, options)
    if as_json:
        report = {**vars(done), "shape": list(done.shape), "output": str(target), "mode": mode.split(",")}
        typer.echo(json.dumps(report))
        return
    counted = f", {done.tokens:,} tokens" if done.tokens else ""
    typer.echo(
        f"{done.source} -> {target} {done.shape} {done.dtype}: {mode}; {done.rows:,} rows{counted}; "
        f"{done.seconds * 1e3:.1f} ms"
    )


@app.command()
def demo(out: Folder = Path("anypool-demo")) -> None:
    """Pool a photograph, work a small example, and measure what a shift of one pixel changes."""
    files.need("PIL", "Pillow")
    files.need("matplotlib", "matplotlib")
    from anypool.cli.demo import run

    run(out, typer.echo)


@app.command()
def info(as_json: Json = False) -> None:
    """Say what this installation is made of."""
    from anypool.cli import installation

    found = installation.describe()
    typer.echo(json.dumps(found) if as_json else installation.readable(found))


@app.command("bench-model")
def bench_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="module:callable, as torchvision.models:resnet18, or, with --trust, a torch.save file.",
        ),
    ],
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Load MODEL from a file. Such a file can run any code as it is loaded: only for your own."
        ),
    ] = False,
    shape: Annotated[str, typer.Option(metavar="SIZE", help="Shape of the input.")] = "8x3x224x224",
    dtype: Annotated[str, typer.Option(metavar="NAME", help="float32, bfloat16 or float16.")] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Use that memory format.")] = False,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long to measure.")] = 4.0,
    show: Annotated[str | None, typer.Option(metavar="FIG.png", help="Draw every pooling before and after.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a PyTorch model before and after anypool.torch: each pooling, the whole model, its memory."""
    size = arguments.sizes("--shape", shape)
    sizes = size if isinstance(size, tuple) else (size,)
    if len(sizes) not in (3, 4, 5):
        raise InputError(f"--shape must be a batch, channels and 1 to 3 sizes, got {shape}")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"--dtype must be float32, bfloat16 or float16, got {dtype}")
    figure = None if show is None else files.check_output(show, "--show", FIGURES)
    if figure is not None:
        files.need("matplotlib", "matplotlib")
    files.need("torch", "torch", extra="torch")
    import torch

    from anypool.cli import models

    net = models.load(model, trust=trust).to(getattr(torch, dtype))
    x = torch.randn(sizes).to(getattr(torch, dtype))
    if channels_last:
        if len(sizes) != 4:
            raise InputError(f"--channels-last needs a --shape of four sizes, got {shape}")
        net, x = (a.to(memory_format=torch.channels_last) for a in (net, x))
    try:
        found = models.compare(model, net, x, seconds)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"MODEL {model} fails on {shape} {dtype}: {str(error).splitlines()[0]}") from None
    if figure is not None:
        with files.replacing(figure) as (written,):
            models.picture(found, written, figure.suffix[1:].replace("jpg", "jpeg"))
    typer.echo(json.dumps(found.to_dict(), allow_nan=False) if as_json else str(found))


def _outputs(source: str, target: str, show: str | None) -> tuple[Path, Path | None]:
    path = files.check_output(target, "OUT", (*files.ARRAY_FORMATS, *files.IMAGE_FORMATS))
    if path.suffix.lower() in files.IMAGE_FORMATS:
        files.need("PIL", "Pillow")
    if show is None:
        return path, None
    figure = files.check_output(show, "--show", FIGURES)
    for other, name in ((path, "OUT"), (files.split_member(source)[0], "IN")):
        if figure.resolve() == other.resolve():
            raise InputError(f"--show must not be the same file as {name}, got {show}")
    files.need("matplotlib", "matplotlib")
    return path, figure


def _pool(
    source: Source, target: Path, figure: Path | None, op: str, kernel: arguments.Size, options: dict[str, Any]
) -> dict[str, Any]:
    x = source.array
    named = {name: value for name, value in options.items() if name != "seed"}

    def pooled(out: Array | None = None) -> Array:
        generator = np.random.default_rng(options["seed"]) if "seed" in options else None
        y: Array = ap.pool(x, op, kernel, out=out, generator=generator, **named)
        return y

    try:
        plan = ap.explain(ap.pool, x, op, kernel, **named)
        if target.suffix.lower() in files.IMAGE_FORMATS:  # refused here, before the work
            files.image_mode(np.dtype(plan.result_dtype), tuple(plan.output_shape), source, target)
        if figure is not None and 0 in plan.output_shape:
            raise InputError(f"--show has nothing to draw, the result is {tuple(plan.output_shape)}: {figure}")
        start = time.perf_counter()
        y = pooled()
        first = time.perf_counter() - start
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(arguments.with_option_names(str(error))) from None
    speed = timing.measure(lambda: pooled(y), first, plan.bytes_moved, plan.threads)
    title = _title(op, kernel, options, x.ndim)
    with files.replacing(target, *([figure] if figure else [])) as written:
        files.write(written[0], target, y, source)
        if figure is not None:
            from anypool.cli import show

            drawn = show.pooling_figure(
                x, y, plan.windows.axes, options["axes"], title.replace(" x ", " × "), source.mode
            )
            show.save(drawn, written[1], figure)
    return {
        "input": {"shape": list(x.shape), "dtype": x.dtype.name, "mode": source.mode, "array": source.member},
        "output": {"path": str(target), "shape": list(y.shape), "dtype": y.dtype.name},
        "figure": None if figure is None else str(figure),
        "operation": title,
        "arguments": _plain({"op": op, "kernel": kernel, **options}),
        "plan": plan.to_dict(),
        "backend": plan.backend,
        "isa": plan.isa,
        "threads": plan.threads,
        "seconds": speed.seconds,
        "runs": speed.runs,
        "bytes_moved": speed.bytes_moved,
        "gb_per_s": speed.gb_per_s,
        "copy_seconds": speed.copy_seconds,
        "fraction_of_copy_speed": speed.of_copy,
        "speed": str(speed),
        "notes": list(source.notes),
    }


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no dtype."""
    return {
        name: str(value) if isinstance(value, np.dtype) or value == float("inf") else value
        for name, value in options.items()
        if value is not None
    }


def _title(op: str, kernel: arguments.Size, options: dict[str, Any], rank: int) -> str:
    """`max 3 x 3, stride 2, padding 1`: the operation, and every option that is not at its default."""
    axes = options["axes"]

    def text(value: Any) -> str:
        if isinstance(value, int):
            return " x ".join([str(value)] * len(axes))
        return value if isinstance(value, str) else " x ".join(str(part) for part in value)

    parts = [f"{op} {text(kernel)}" if len(axes) > 1 else f"{op}, kernel {text(kernel)}"]
    if len(axes) == 1 and rank > 1:
        parts[0] += f" along axis {axes[0]}"
    if options["stride"] is not None and text(options["stride"]) != text(kernel):
        parts.append(f"stride {text(options['stride'])}")
    parts += [
        f"{name} {text(options[name])}" for name, usual in (("padding", 0), ("dilation", 1)) if options[name] != usual
    ]
    if options["ceil_mode"]:
        parts.append("ceil")
    names = {"norm_type": "p", "r": "r", "q": "q", "correction": "correction", "seed": "seed"}
    parts += [f"{short} = {options[name]}" for name, short in names.items() if name in options]
    if "ignore" in options:
        parts.append(f"ignoring {', '.join(map(str, options['ignore']))}")
    if not options.get("count_include_pad", True):
        parts.append("padding not counted")
    return ", ".join(parts)


def _line(report: dict[str, Any]) -> str:
    def side(end: dict[str, Any]) -> str:
        return f"{end['path']} {tuple(end['shape'])} {end['dtype']}"

    where = " ".join(str(report[name]) for name in ("backend", "isa") if report[name])
    line = f"{side(report['input'])} -> {side(report['output'])}: {report['operation']}; {where}; {report['speed']}"
    return line + (f"; figure {report['figure']}" if report["figure"] else "")
