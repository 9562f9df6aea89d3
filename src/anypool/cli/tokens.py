"""`anypool tokens`: token vectors in a file, or in a column of a table, to one vector a row."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

import anypool as ap
from anypool.cli import files
from anypool.cli.files import Array, InputError

ARRAYS = (".npy", ".npz", ".safetensors")
TABLES = (".parquet", ".arrow", ".feather", ".ipc")
OUTPUTS = (".npy", ".parquet")
LAYOUTS = ("mask", "lengths", "offsets")
# What the library calls an argument, at the beginning of its messages, and the option's name here.
_OPTION_OF = {
    "reduction": "--mode",
    "exclude_prefix": "--exclude-prefix",
    "norm_type": "--norm-type",
    "r must": "--r must",
    "x must": "IN must",
}


@dataclass
class Report:
    """What was done, for a line or JSON."""

    source: str
    rows: int = 0
    tokens: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    seconds: float = 0.0


def run(source: str, target: Path, reduction: list[str], layout_files: dict[str, str | None], column: str | None,
        batch: int, options: dict[str, Any]) -> Report:  # fmt: skip
    """Pool what is in ``source`` into ``target``."""
    suffix = Path(source).suffix.lower()
    if suffix not in ARRAYS + TABLES:
        raise InputError(f"IN must be one of {', '.join(ARRAYS + TABLES)}, got {source}")
    if not Path(source).is_file():
        raise InputError(f"IN: no such file: {source}")
    if target.resolve() == Path(source).resolve():
        raise InputError(f"OUT must not be IN, got {target}")
    names: Any = reduction[0] if len(reduction) == 1 else reduction
    try:
        if suffix in TABLES:
            if given := [f"--{k}" for k, v in layout_files.items() if v is not None]:
                raise InputError(f"{given[0]} is for arrays; a table's rows have their lists of vectors")
            return _table(source, target, names, column, batch, options)
        if column is not None:
            raise InputError(f"--column is for tables, got {source}")
        return _array(source, target, names, layout_files, options)
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        for name, option in _OPTION_OF.items():
            message = option + message.removeprefix(name) if message.startswith(name) else message
        raise InputError(message) from None


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _array(
    source: str, target: Path, reduction: Any, layout_files: dict[str, str | None], options: dict[str, Any]
) -> Report:
    found: dict[str, Any] = dict(_members(Path(source)))
    x = found.pop("x")
    for name, path in layout_files.items():
        if path is not None:
            if name in found:
                raise InputError(f"--{name} is given and {source} has one, too")
            found[name] = _load(Path(path), f"--{name}")
    if len(found) > 1:
        raise InputError(f"only one of {', '.join(LAYOUTS)} can say which tokens count, got {' and '.join(found)}")
    start = time.perf_counter()
    y = ap.pool_tokens(x, reduction, **found, **options)
    seconds = time.perf_counter() - start
    rows = y.reshape(-1, y.shape[-1])
    with files.replacing(target) as (file,):
        if target.suffix.lower() == ".npy":
            files.write_npy(file, y)
        else:
            with _parquet_writer(file, None) as write:
                write(rows)
    text = f"{source} {x.shape} {x.dtype.name}" + "".join(f", {name}" for name in found)
    return Report(text, len(rows), 0, y.shape, y.dtype.name, seconds)


def _members(path: Path) -> dict[str, Array]:
    """Return x, and mask, lengths or offsets if the file has them."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"x": _load(path, "IN")}
    if suffix == ".npz":
        with _reading(path, "IN"), path.open("rb") as file:
            if file.read(2) != b"PK":
                raise InputError(f"IN is not an .npz (zip) file: {path}")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            files.check_members(archive)
            found = {name: archive[name] for name in archive.files}
    else:
        files.need("safetensors", "safetensors")
        from safetensors import safe_open

        with _reading(path, "IN"), safe_open(path, framework="np") as archive:
            found = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118  not a mapping
    if "x" not in found and len(found) == 1:
        found = {"x": next(iter(found.values()))}
    if "x" not in found or set(found) - {"x", *LAYOUTS}:
        raise InputError(f"IN must hold x, and mask, lengths or offsets if need be, got {', '.join(found)}: {path}")
    return found


def _load(path: Path, option: str) -> Array:
    if path.suffix.lower() != ".npy":
        raise InputError(f"{option} must be a .npy file, got {path}")
    if not path.is_file():
        raise InputError(f"{option}: no such file: {path}")
    with _reading(path, option):
        array: Array = np.lib.format.open_memmap(path, mode="r")  # which knows no pickles, and no other formats
    return array


@contextlib.contextmanager
def _reading(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each library has its own errors for a broken file
        raise InputError(f"{option} cannot be read: {path}: {error}") from None


# ---- tables ----------------------------------------------------------------------------------------------------------


def _table(
    source: str, target: Path, reduction: Any, column: str | None, batch: int, options: dict[str, Any]
) -> Report:
    files.need("pyarrow", "pyarrow")
    from anypool import arrow

    path = Path(source)
    with contextlib.ExitStack() as stack:
        with _reading(path, "IN"):
            schema, rows, batches = _open(path, batch, stack)
        name = _column(schema, column, source)
        report = Report(f"{source} column {name} ({schema.field(name).type})", rows)
        wide = target.suffix.lower() == ".parquet"
        with files.replacing(target) as (file,), _progress(rows) as advance:
            writer: Any = None
            for read in _each(path, batches):
                part = read if wide else read.select([name])
                start = time.perf_counter()
                pooled = arrow.pool_column(part, name, reduction, **options)
                report.seconds += time.perf_counter() - start
                report.tokens += sum(len(a.flatten()) for a in [part.column(name)])
                y = np.asarray(pooled.column(name).values).reshape(part.num_rows, -1)
                report.shape, report.dtype = (rows, y.shape[1]), y.dtype.name
                if wide:
                    writer = writer or stack.enter_context(_parquet_writer(file, pooled.schema))
                    writer(pooled)
                else:
                    if writer is None:
                        writer = _npy_header(file, (rows, y.shape[1]), y.dtype)
                    file.write(np.ascontiguousarray(y).data)
                advance(part.num_rows)
            if writer is None:
                raise InputError(f"IN has no rows: {source}")
            stack.close()
    return report


def _each(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the batches. Only what goes wrong as they are read is a fault of IN."""
    while True:
        with _reading(path, "IN"):
            read = next(batches, None)
        if read is None:
            return
        yield read


def _open(path: Path, batch: int, stack: contextlib.ExitStack) -> tuple[Any, int, Iterator[Any]]:
    """Return the schema, the number of rows, and the rows in batches that are read one at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        # With pre_buffer PyArrow would keep what it has read of the file.
        file = stack.enter_context(pq.ParquetFile(path, pre_buffer=False))
        return file.schema_arrow, file.metadata.num_rows, file.iter_batches(batch_size=batch)
    reader = stack.enter_context(pa.ipc.open_file(stack.enter_context(pa.memory_map(str(path)))))
    rows = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
    return reader.schema, rows, (reader.get_batch(i) for i in range(reader.num_record_batches))


def _column(schema: Any, wanted: str | None, source: str) -> str:
    from anypool import arrow

    able = [field.name for field in schema if arrow.is_vectors(field.type)]
    if wanted is not None:
        if wanted not in schema.names:
            raise InputError(f"--column must be one of {', '.join(schema.names)}, got {wanted!r}: {source}")
        if wanted not in able:
            raise InputError(
                f"--column must hold a list of vectors in each row, {wanted} holds {schema.field(wanted).type}"
            )
        return wanted
    if len(able) != 1:
        raise InputError(f"--column must name the column of vectors: {source} has {', '.join(able) or 'none'}")
    return str(able[0])


@contextlib.contextmanager
def _parquet_writer(file: IO[bytes], schema: Any) -> Iterator[Callable[[Any], None]]:
    files.need("pyarrow", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(rows: Array) -> Any:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])
        return pa.RecordBatch.from_arrays([flat], names=["embedding"])

    writer: Any = None if schema is None else pq.ParquetWriter(file, schema)
    try:

        def write(part: Any) -> None:
            nonlocal writer
            part = column(part) if isinstance(part, np.ndarray) else part
            writer = writer or pq.ParquetWriter(file, part.schema)
            writer.write_batch(part)

        yield write
    finally:
        if writer is not None:
            writer.close()


def _npy_header(file: IO[bytes], shape: tuple[int, int], dtype: np.dtype[Any]) -> bool:
    described: Any = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return True


@contextlib.contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal and rich is there; Typer brings it along."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield lambda n: None
        return
    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("rows", total=rows)
        yield lambda n: bar.advance(task, n)
