"""`anypool tokens` and Arrow columns: the same vectors as `pool_tokens`, one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import anypool as ap
import token_cases
import tolerance

pytest.importorskip("typer")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from anypool.arrow import is_vectors, pool_array, pool_column, tokens_of, vectors  # noqa: E402
from anypool.cli import main  # noqa: E402

LENGTHS = (3, 0, 1, 17, 40)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = main(["tokens", *map(str, arguments)])
        out = capsys.readouterr()
        return status, out.out.strip(), out.err.strip()

    return call


# ------------------------------------------------------------------------------------ arrow


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_columns_without_a_copy(dtype):
    rows = token_cases.rows_of(LENGTHS, 5, dtype)
    column = vectors(rows)
    x, _ = tokens_of(column)
    assert x.base is not None
    assert x.__array_interface__["data"][0] == column.values.values.buffers()[1].address
    wanted = ap.pool_tokens(rows, ["mean", "max"])
    assert tolerance.same_bits(pool_array(column, ["mean", "max"]), wanted)
    prefixed = ap.pool_tokens(rows, "weightedmean", exclude_prefix=2)
    assert tolerance.same_bits(pool_array(column, "weightedmean", exclude_prefix=2), prefixed)
    part = column.slice(2, 3)
    assert tolerance.same_bits(pool_array(part, ["mean", "max"]), wanted[2:])
    chunked = pa.chunked_array([column.slice(0, 2), column.slice(2, 0), column.slice(2)])
    assert tolerance.same_bits(pool_array(chunked, ["mean", "max"]), wanted)


def test_other_kinds_of_lists():
    rows = token_cases.rows_of(LENGTHS, 5, "float32")
    wanted = ap.pool_tokens(rows, "mean")
    plain = pa.array([r.tolist() for r in rows], pa.list_(pa.list_(pa.float32())))
    assert tolerance.same_bits(pool_array(plain, "mean"), wanted)
    assert tolerance.same_bits(pool_array(plain.slice(2), "mean"), wanted[2:])
    missing = pa.array([r.tolist() if i else None for i, r in enumerate(rows)], pa.list_(pa.list_(pa.float32(), 5)))
    got = pool_array(missing, "mean")
    assert np.isnan(got[0]).all()
    assert tolerance.same_bits(got[1:], wanted[1:])


@pytest.mark.parametrize("kind", ["table", "batch"])
def test_pool_column(kind):
    rows = token_cases.rows_of(LENGTHS, 5, "float32")
    table = pa.table({"id": list(range(5)), "tokens": vectors(rows)})
    given = table if kind == "table" else table.to_batches()[0]
    found = pool_column(given, "tokens", "last", empty=0.0)
    assert type(found) is type(given)
    assert found.schema.names == ["id", "tokens"]
    wanted = ap.pool_tokens(rows, "last", empty=0.0)
    assert np.array_equal(np.array(found["tokens"].to_pylist(), np.float32), wanted)
    both = pool_column(given, "tokens", "last", output="vector", empty=0.0)
    assert both.schema.names == ["id", "tokens", "vector"]
    assert both["vector"].to_pylist() == found["tokens"].to_pylist()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0]]), "tokens must hold a list of vectors in each row, got list<"),
        (pa.array([1, 2]), "tokens must hold a list of vectors in each row, got int64"),
        (pa.array([[[1.0], [1.0, 2.0]]]), "tokens must hold vectors of one length, got 1 and 2"),
        (pa.array([[[1.0], None]], pa.list_(pa.list_(pa.float64(), 1))), "tokens holds vectors that are null"),
        (pa.array([[[1.0, None]]], pa.list_(pa.list_(pa.float64(), 2))), "tokens holds numbers that are null"),
    ],
)
def test_columns_that_hold_something_else(column, message):
    with pytest.raises(ValueError, match=message):
        pool_column(pa.table({"tokens": column}), "tokens", "mean")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vectors([np.ones((2, 3)), np.ones((1, 4))]),
         r"rows must be arrays \(tokens, dim\) of one dim, got shapes \[\(2, 3\), \(1, 4\)\]"),
        (lambda: vectors([np.ones((2, 3)), np.ones(3)]), r"of one dim, got shapes \[\(2, 3\), \(3,\)\]"),
        (lambda: vectors([]), r"of one dim, got shapes \[\]"),
        (lambda: pool_array(pa.chunked_array([], vectors([np.ones((2, 3))]).type), "mean", "tokens"),
         "^tokens has no rows$"),
    ],
)  # fmt: skip
def test_rows_that_are_no_column(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_column_that_is_not_there():
    with pytest.raises(KeyError, match="no column 'x'; there are a, b"):
        pool_column(pa.table({"a": [1], "b": [2]}), "x", "mean")
    assert not is_vectors(pa.list_(pa.list_(pa.int64())))


# ------------------------------------------------------------------------------------ files of arrays


def test_arrays(tmp_path, run):
    x = np.random.default_rng(0).standard_normal((4, 9, 6)).astype(np.float32)
    mask = np.random.default_rng(1).random((4, 9)) < 0.5
    lengths, offsets = np.array([1, 9, 0, 4]), np.array([0, 10, 36])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "flat.npy", x.reshape(36, 6))
    for name, array in {"mask": mask, "lengths": lengths, "offsets": offsets}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "both.npz", x=x, mask=mask)
    np.savez(tmp_path / "one.npz", embeddings=x)
    out = tmp_path / "y.npy"
    cases = [
        (["x.npy"], {}, x),
        (["x.npy", "--mask", tmp_path / "mask.npy"], {"mask": mask}, x),
        (["x.npy", "--lengths", tmp_path / "lengths.npy"], {"lengths": lengths}, x),
        (["flat.npy", "--offsets", tmp_path / "offsets.npy"], {"offsets": offsets}, x.reshape(36, 6)),
        (["both.npz"], {"mask": mask}, x),
        (["x.npy", "--exclude-prefix", 3], {"exclude_prefix": 3}, x),
        (["one.npz"], {}, x),
    ]
    for arguments, kwargs, array in cases:
        status, line, _ = run(tmp_path / arguments[0], out, *arguments[1:], "--mode", "max,mean")
        assert status == 0
        assert tolerance.same_bits(np.load(out), ap.pool_tokens(array, ["max", "mean"], **kwargs))
        assert f"-> {out}" in line
    status, line, _ = run(tmp_path / "x.npy", tmp_path / "y.parquet", "--json")
    assert json.loads(line)["shape"] == [4, 6]
    table = pq.read_table(tmp_path / "y.parquet")
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), ap.pool_tokens(x, "mean"))


@pytest.mark.parametrize(
    ("mode", "option", "value", "keyword"),
    [
        ("lp", "--norm-type", 3.5, "norm_type"),
        ("lp", "--norm-type", np.inf, "norm_type"),
        ("logsumexp", "--r", -2.0, "r"),
    ],
)
def test_numbers_of_a_reduction(tmp_path, run, mode, option, value, keyword):
    x = np.random.default_rng(0).standard_normal((4, 9, 6))
    np.save(tmp_path / "x.npy", x)
    assert run(tmp_path / "x.npy", tmp_path / "y.npy", "--mode", mode, option, value)[0] == 0
    assert tolerance.same_bits(np.load(tmp_path / "y.npy"), ap.pool_tokens(x, mode, **{keyword: value}))
    wanted = {
        ("lp", 3.5): lambda: (np.abs(x) ** 3.5).sum(1) ** (1 / 3.5),
        ("lp", np.inf): lambda: np.abs(x).max(1),
        ("logsumexp", -2.0): lambda: np.log(np.exp(-2 * x).sum(1)) / -2,
    }[mode, value]()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, rtol=1e-12)


def test_safetensors(tmp_path, run):
    safetensors = pytest.importorskip("safetensors.numpy")
    x = np.random.default_rng(0).standard_normal((4, 9, 6)).astype(np.float16)
    lengths = np.array([1, 9, 2, 4])
    safetensors.save_file({"x": x, "lengths": lengths}, tmp_path / "x.safetensors")
    assert run(tmp_path / "x.safetensors", tmp_path / "y.npy", "--mode", "last")[0] == 0
    assert tolerance.same_bits(np.load(tmp_path / "y.npy"), ap.pool_tokens(x, "last", lengths=lengths))


# ------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables_in_batches(tmp_path, run, suffix):
    rows = token_cases.rows_of([i % 13 for i in range(200)], 8, "float32")
    table = pa.table({"id": list(range(200)), "tokens": vectors(rows)})
    source = tmp_path / f"in{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, source, row_group_size=60)
    else:
        with pa.ipc.new_file(source, table.schema) as writer:
            writer.write_table(table, max_chunksize=60)
    wanted = ap.pool_tokens(rows, "mean")
    status, line, _ = run(source, tmp_path / "y.npy", "--batch", 7)
    assert status == 0
    assert "column tokens" in line
    assert f"200 rows, {sum(map(len, rows)):,} tokens" in line
    assert tolerance.same_bits(np.load(tmp_path / "y.npy"), wanted)
    assert run(source, tmp_path / "y.parquet", "--batch", 50, "--column", "tokens")[0] == 0
    found = pq.read_table(tmp_path / "y.parquet")
    assert found["id"].to_pylist() == list(range(200))
    assert tolerance.same_bits(np.array(found["tokens"].to_pylist(), np.float32), wanted)


def test_a_table_larger_than_what_may_be_held(tmp_path):
    """1.2 GB of vectors through a process that may keep a fraction of that."""
    source, target = tmp_path / "large.parquet", tmp_path / "y.npy"
    rows = [np.full((64, 256), i, np.float32) for i in range(100)]
    batch = pa.record_batch({"tokens": vectors(rows)})
    with pq.ParquetWriter(source, batch.schema, compression="zstd") as writer:
        for _ in range(180):
            writer.write_batch(batch)
    script = (
        "import resource, sys\n"
        "import anypool.arrow, pyarrow.parquet\n"
        "from anypool.cli import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "status = main(['tokens', *sys.argv[1:], '--batch', '100'])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert np.load(target, mmap_mode="r").shape == (18_000, 256)
    assert int(done.stdout.split()[-1]) < 300, done.stdout


# ------------------------------------------------------------------------------------ what is wrong


def test_one_line_for_what_is_wrong(tmp_path, run):
    x = np.ones((2, 3, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "long.npy", np.array([1, 9]))
    np.savez(tmp_path / "odd.npz", a=x, b=x)
    np.savez(tmp_path / "both.npz", x=x, mask=np.ones((2, 3)))
    np.savez(tmp_path / "one.npz", embeddings=x)
    np.save(tmp_path / "mask.npy", np.ones((2, 3)))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    table = pa.table({"a": vectors([x[0]]), "b": vectors([x[0]]), "n": [1]})
    pq.write_table(table, tmp_path / "two.parquet")
    pq.write_table(table.select(["a"]).slice(0, 0), tmp_path / "none.parquet")
    with pa.ipc.new_file(tmp_path / "none.arrow", table.select(["a"]).schema):
        pass
    out = tmp_path / "y.npy"
    cases = [
        (["none.npy", out], "IN: no such file"),
        (["x.npy", tmp_path / "y.txt"], "OUT must"),
        (["x.npy", out, "--mode", "median"], "--mode must be one of mean"),
        (["x.npy", out, "--lengths", tmp_path / "long.npy"], r"lengths must be in [0, 3], got 9"),
        (["x.npy", out, "--column", "a"], "--column is for tables"),
        (["odd.npz", out], "IN must hold x, and mask, lengths or offsets if need be, got a, b"),
        (["broken.parquet", out], "IN cannot be read"),
        (["two.parquet", out], "--column must name the column of vectors"),
        (["two.parquet", out, "--column", "c"], "--column must be one of a, b, n, got 'c'"),
        (["two.parquet", out, "--column", "n"], "--column must hold a list of vectors in each row, n holds int64"),
        (["two.parquet", out, "--column", "a", "--batch", "0"], "--batch must be >= 1, got 0"),
        (["two.parquet", out, "--mask", tmp_path / "long.npy"], "--mask is for arrays"),
        (["x.txt", out], "IN must be one of .npy, .npz, .safetensors, .parquet, .arrow"),
        (["x.npy", tmp_path / "x.npy"], f"OUT must not be IN, got {tmp_path / 'x.npy'}"),
        (["both.npz", out, "--mask", tmp_path / "mask.npy"], "--mask is given and"),
        (["both.npz", out, "--lengths", tmp_path / "long.npy"], "only one of mask, lengths, offsets can say which"),
        (["both.npz", out, "--lengths", tmp_path / "long.npy"], "got mask and lengths"),
        (["x.npy", out, "--mask", tmp_path / "mask.txt"], f"--mask must be a .npy file, got {tmp_path / 'mask.txt'}"),
        (["x.npy", out, "--offsets", tmp_path / "no.npy"], f"--offsets: no such file: {tmp_path / 'no.npy'}"),
        (["none.parquet", out], f"IN has no rows: {tmp_path / 'none.parquet'}"),
        (["none.parquet", tmp_path / "y.parquet"], f"IN has no rows: {tmp_path / 'none.parquet'}"),
        (["none.arrow", out], f"IN has no rows: {tmp_path / 'none.arrow'}"),
        (["x.npy", out, "--norm-type", "3"], "--norm-type is for lp and gem, got it with reduction 'mean'"),
        (["x.npy", out, "--mode", "lp", "--norm-type", "p"], "--norm-type must be a number, got 'p'"),
        (["x.npy", out, "--mode", "lp", "--norm-type", "0"], "--norm-type must be > 0, got 0"),
        (["x.npy", out, "--mode", "logsumexp", "--r", "0"], "--r must be finite and not 0, got 0"),
        (["two.parquet", out, "--column", "a", "--mode", "median"], "anypool: --mode must be one of mean"),
        (["two.parquet", out, "--column", "a", "--norm-type", "3"], "anypool: --norm-type is for lp and gem"),
        (["two.parquet", out, "--column", "a", "--exclude-prefix", "-1"], "anypool: --exclude-prefix must be >= 0"),
    ]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments, message in cases:
        status, _, err = run(tmp_path / arguments[0], *arguments[1:])
        assert status == 2, (arguments, err)
        assert err.startswith("anypool: "), err
        assert message in err
        assert "\n" not in err
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
