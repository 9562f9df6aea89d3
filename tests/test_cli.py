"""The `anypool` command: what it writes and prints, and that a failure is one line and leaves every file alone."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="the command line needs the extra `cli`")
Image = pytest.importorskip("PIL.Image", reason="the command line needs the extra `cli`")
pytest.importorskip("matplotlib", reason="the command line needs the extra `cli`")

from anypool import cli  # noqa: E402
from anypool.cli import files  # noqa: E402

SIGNAL = [1, 4, -1, 0, 2, -2, 1, 3, 3, 1]
RNG = np.random.default_rng(20)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run the command in this process; returns status, stdout, stderr."""

    def command(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return command


@pytest.fixture
def refused(run):
    """Run a command that must fail: status 2, one line on stderr with these words, nothing else, no new file."""

    def command(*arguments, words, status=2):
        before = contents(Path())
        found, out, err = run(*arguments)
        assert found == status, (out, err)
        assert out == ""
        assert err.startswith("anypool: ")
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert "Traceback" not in err
        for word in [words] if isinstance(words, str) else words:
            assert word in err
        assert contents(Path()) == before

    return command


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every name under a folder, hidden ones too, with the file's bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def picture_in(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def member(path: str, name: str) -> np.ndarray:
    with np.load(path) as archive:
        return archive[name]


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def blocks(x, k=2):
    """Non-overlapping k x k blocks of the first two axes as (h, w, k*k, ...), by reshaping alone."""
    h, w = x.shape[0] // k, x.shape[1] // k
    cut = x[: h * k, : w * k].reshape(h, k, w, k, *x.shape[2:])
    return np.moveaxis(cut, 2, 1).reshape(h, w, k * k, *x.shape[2:])


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "picture", "suffix"),
    [
        ("RGB", pixels(11, 8, 3), ".png"),
        ("RGBA", pixels(11, 8, 4), ".png"),
        ("L", pixels(11, 8), ".png"),
        ("LA", pixels(11, 8, 2), ".png"),
        ("I;16", pixels(11, 8, dtype=np.uint16), ".png"),
        ("1", pixels(11, 8) > 127, ".png"),
        ("RGB", pixels(11, 8, 3), ".tif"),
        ("L", pixels(11, 8), ".tiff"),
        ("I;16", pixels(11, 8, dtype=np.uint16), ".tif"),
        ("F", RNG.normal(size=(11, 8)).astype(np.float32), ".tif"),
        ("I", pixels(11, 8, dtype=np.int32), ".tif"),
        ("CMYK", pixels(11, 8, 4), ".tif"),
    ],
)
def test_an_image_keeps_its_mode(run, mode, picture, suffix):
    made = Image.fromarray(picture) if mode == "1" else Image.frombytes(mode, (8, 11), picture.tobytes())
    made.save("in" + suffix)
    status, out, err = run("pool", "in" + suffix, "out" + suffix)
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    with Image.open("out" + suffix) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), blocks(picture).max(axis=2))


def test_a_mean_of_pixels_is_rounded_half_to_even(run):
    picture = pixels(8, 8, 3)
    Image.fromarray(picture).save("in.png")
    assert run("pool", "in.png", "out.png", "--op", "avg", "--kernel", "2x4")[0] == 0
    expected = np.rint(picture.reshape(4, 2, 2, 4, 3).astype(float).mean(axis=(1, 3)))
    np.testing.assert_array_equal(picture_in("out.png"), expected)


def test_a_jpeg_in_and_out(run):
    Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save("in.jpg")
    assert run("pool", "in.jpg", "out.JPEG", "--kernel", "5")[0] == 0
    with Image.open("out.JPEG") as image:
        assert (image.mode, image.size, image.format) == ("RGB", (6, 4), "JPEG")
        assert abs(int(np.asarray(image)[0, 0, 0]) - 100) <= 2


@pytest.mark.parametrize(("transparent", "mode"), [(False, "RGB"), (True, "RGBA")])
def test_a_palette_is_converted_with_a_note(run, transparent, mode):
    picture = pixels(8, 8, 3)
    palette = Image.fromarray(picture).quantize(16)
    palette.save("in.png", **({"transparency": 0} if transparent else {}))
    status, _, err = run("pool", "in.png", "out.png")
    assert status == 0
    assert "palette converted to " + mode in err
    with Image.open("out.png") as image:
        assert image.mode == mode
        with Image.open("in.png") as original:
            colours = np.asarray(original.convert(mode))
        np.testing.assert_array_equal(np.asarray(image), blocks(colours).max(axis=2))


@pytest.mark.parametrize(("mode", "picture"), [("L", pixels(8, 8)), ("RGB", pixels(8, 8, 3))])
def test_a_transparent_colour_becomes_alpha_with_a_note(run, mode, picture):
    colour = picture[0, 0].tolist()
    Image.fromarray(picture).save("in.png", transparency=colour if mode == "L" else tuple(colour))
    status, _, err = run("pool", "in.png", "out.png")
    assert status == 0
    assert f"transparent colour converted to {mode}A" in err
    flat = picture.reshape(8, 8, -1)
    alpha = np.where((flat == flat[0, 0]).all(axis=2, keepdims=True), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(picture_in("out.png"), blocks(np.concatenate([flat, alpha], axis=2)).max(axis=2))


def test_colours_that_were_multiplied_by_alpha_are_divided_with_a_note(run):
    """A TIFF says so by a 1 in the place of the 2 that Pillow writes; 20 of 51 in 255 was 100."""
    stored = np.empty((8, 8, 2), np.uint8)
    stored[:, :4], stored[:, 4:] = (20, 51), (70, 255)
    Image.fromarray(stored, "LA").save("in.tif")
    data = Path("in.tif").read_bytes()
    tag = struct.pack("<HHIH", 338, 3, 1, 2)
    assert data.count(tag) == 1
    Path("in.tif").write_bytes(data.replace(tag, struct.pack("<HHIH", 338, 3, 1, 1)))
    status, _, err = run("pool", "in.tif", "out.tif")
    assert status == 0
    assert "mode La converted to LA" in err
    pooled = picture_in("out.tif")
    assert pooled.shape == (4, 4, 2)
    assert (pooled[:, :2] == (100, 51)).all()
    assert (pooled[:, 2:] == (70, 255)).all()


def test_colours_of_16_bits_are_read_as_8_and_that_is_said(run):
    colours = pixels(8, 8, 3, dtype=np.uint16)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    Path("in.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    status, _, err = run("pool", "in.png", "out.png")
    assert status == 0
    assert err == "anypool: note: in.png: Pillow reads 16-bit colour as 8-bit; use an .npy to keep all bits\n"
    np.testing.assert_array_equal(picture_in("out.png"), blocks((colours >> 8).astype(np.uint8)).max(axis=2))


def test_a_photograph_is_turned_upright(run):
    picture = np.zeros((8, 16), np.uint8)
    picture[:, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: what is on the left belongs on top
    Image.fromarray(picture).save("in.png", exif=exif)
    status, _, err = run("pool", "in.png", "out.png")
    assert status == 0
    assert "turned upright" in err
    pooled = picture_in("out.png")
    assert pooled.shape == (8, 4)
    assert (pooled[:4] == 200).all()
    assert (pooled[4:] == 0).all()


def test_the_colour_profile_is_kept(run):
    Image.fromarray(pixels(8, 8, 3)).save("in.png", icc_profile=b"a profile")
    assert run("pool", "in.png", "out.png")[0] == 0
    with Image.open("out.png") as image:
        assert image.info["icc_profile"] == b"a profile"


def test_only_the_first_picture_of_several_is_pooled_and_said(run):
    first = Image.fromarray(np.zeros((4, 4), np.uint8))
    first.save("in.tif", save_all=True, append_images=[Image.fromarray(np.ones((4, 4), np.uint8))])
    status, _, err = run("pool", "in.tif", "out.tif")
    assert status == 0
    assert "only the first of its 2 pictures" in err
    assert not picture_in("out.tif").any()


def test_an_image_to_an_array_and_back(run):
    picture = pixels(8, 8, 3)
    Image.fromarray(picture).save("in.png")
    assert run("pool", "in.png", "sums.npy", "--op", "sum")[0] == 0
    sums = np.load("sums.npy")
    np.testing.assert_array_equal(sums, blocks(picture.astype(np.int64)).sum(axis=2))
    np.save("picture.npy", picture)
    assert run("pool", "picture.npy", "out.png", "--axes", "0,1")[0] == 0
    np.testing.assert_array_equal(picture_in("out.png"), blocks(picture).max(axis=2))


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_the_worked_example(run):
    np.save("signal.npy", np.array(SIGNAL))
    status, out, err = run("pool", "signal.npy", "out.npy", "--op", "max", "--kernel", "2")
    assert (status, err) == (0, "")
    np.testing.assert_array_equal(np.load("out.npy"), [4, 0, 2, 3, 3])
    assert out.startswith("signal.npy (10,) int64 -> out.npy (5,) int64: max, kernel 2; ")
    assert out.endswith(" of copy speed\n")


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ([], (4, 6, 4, 5)),
        (["--kernel", "2x2x2"], (4, 3, 4, 5)),
        (["--kernel", "3x2"], (4, 6, 2, 5)),
        (["--kernel", "3x2", "--stride", "1x2"], (4, 6, 6, 5)),
        (["--kernel", "3", "--axes", "1"], (4, 2, 8, 10)),
        (["--kernel", "2", "--axes", "-4,-3"], (2, 3, 8, 10)),
        (["--kernel", "3", "--stride", "2", "--padding", "1"], (4, 6, 4, 5)),
        (["--kernel", "3", "--stride", "1", "--padding", "same"], (4, 6, 8, 10)),
        (["--kernel", "3", "--stride", "1", "--padding", "0:1x2:0"], (4, 6, 7, 10)),
        (["--kernel", "3", "--ceil"], (4, 6, 3, 4)),
        (["--kernel", "2", "--stride", "1", "--dilation", "3"], (4, 6, 5, 7)),
    ],
)
def test_the_geometry_options(run, options, shape):
    np.save("in.npy", RNG.normal(size=(4, 6, 8, 10)))
    assert run("pool", "in.npy", "out.npy", *options)[0] == 0
    assert np.load("out.npy").shape == shape


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--op", "min"], lambda b: b.min(axis=2)),
        (["--op", "mean"], lambda b: b.mean(axis=2)),
        (["--op", "lp"], lambda b: np.sqrt((b**2).sum(axis=2))),
        (["--op", "lp", "--norm-type", "3"], lambda b: (np.abs(b) ** 3).sum(axis=2) ** (1 / 3)),
        (["--op", "lp", "--norm-type", "inf"], lambda b: np.abs(b).max(axis=2)),
        (["--op", "logsumexp", "--r", "2.5"], lambda b: np.log(np.exp(2.5 * b).sum(axis=2)) / 2.5),
        (["--op", "median"], lambda b: np.median(b, axis=2)),
        (["--op", "quantile", "--q", "0.25"], lambda b: np.quantile(b, 0.25, axis=2)),
        (["--op", "std", "--correction", "1"], lambda b: b.std(axis=2, ddof=1)),
        (["--op", "softmax", "--r", "2"], lambda b: (b * np.exp(2 * b)).sum(axis=2) / np.exp(2 * b).sum(axis=2)),
    ],
)
def test_the_operations(run, options, expected):
    x = RNG.normal(size=(8, 6))
    np.save("in.npy", x)
    assert run("pool", "in.npy", "out.npy", *options)[0] == 0
    np.testing.assert_allclose(np.load("out.npy"), expected(blocks(x)), rtol=1e-12)


def test_padding_counted_or_not(run):
    np.save("in.npy", np.ones((4, 4)))
    corner = {}
    for option in ("--count-include-pad", "--no-count-include-pad"):
        assert run("pool", "in.npy", "out.npy", "--op", "mean", "--padding", "1", option)[0] == 0
        corner[option] = np.load("out.npy")[0, 0]
    assert corner == {"--count-include-pad": 0.25, "--no-count-include-pad": 1.0}


def test_the_result_dtype(run):
    np.save("in.npy", np.arange(4))
    assert run("pool", "in.npy", "out.npy", "--op", "mean", "--dtype", "float32")[0] == 0
    pooled = np.load("out.npy")
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled, [0.5, 2.5])


def test_an_npz(run):
    np.savez("one.npz", weights=np.arange(4))
    np.save("one.npy", np.arange(4))
    np.savez("two.npz", a=np.arange(6), b=np.arange(8))
    with zipfile.ZipFile("named.npz", "w") as archive:
        archive.write("one.npy", "file.npy")
    assert run("pool", "one.npz", "out.npz")[0] == 0
    np.testing.assert_array_equal(member("out.npz", "weights"), [1, 3])
    assert run("pool", "named.npz", "out.npz")[0] == 0
    np.testing.assert_array_equal(member("out.npz", "file"), [1, 3])
    assert run("pool", "two.npz:b", "out.npy")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), [1, 3, 5, 7])


def test_an_archive_loses_no_array(run, refused):
    """The result replaces the array that it is made of, never others beside it."""
    np.savez("one.npz", a=np.arange(6))
    np.savez("two.npz", a=np.arange(6), b=np.arange(8))
    assert run("pool", "one.npz", "one.npz")[0] == 0
    np.testing.assert_array_equal(member("one.npz", "a"), [1, 3, 5])
    refused("pool", "two.npz:a", "two.npz", words="OUT is IN, and holds other arrays, which would be lost (b)")


def test_an_empty_array(run, refused):
    np.save("in.npy", np.ones((0, 8, 8)))
    assert run("pool", "in.npy", "out.npy")[0] == 0
    assert np.load("out.npy").shape == (0, 4, 4)
    refused("pool", "in.npy", "out.npy", "--show", "figure.png", words=["--show", "(0, 4, 4)"])
    refused("pool", "in.npy", "out.png", words=["OUT", "(0, 4, 4)"])


@pytest.mark.parametrize(
    "array", [np.arange(10, dtype=">f8"), np.asfortranarray(np.arange(20.0).reshape(4, 5)).T[:, ::-1]]
)
def test_any_byte_order_and_memory_order(run, array):
    np.save("in.npy", array)
    assert run("pool", "in.npy", "out.npy", "--axes", "0")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), np.maximum(array[:-1:2], array[1::2]))


def test_the_output_may_replace_the_input(run):
    np.save("x.npy", np.array(SIGNAL))
    assert run("pool", "x.npy", "x.npy")[0] == 0
    np.testing.assert_array_equal(np.load("x.npy"), [4, 0, 2, 3, 3])
    assert os.listdir() == ["x.npy"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and symbolic links of POSIX")
def test_a_replaced_file_keeps_its_permissions_and_a_link_stays_a_link(run):
    np.save("x.npy", np.array(SIGNAL))
    Path("real.npy").touch(mode=0o600)
    Path("link.npy").symlink_to("real.npy")
    assert run("pool", "x.npy", "link.npy")[0] == 0
    assert Path("link.npy").is_symlink()
    assert Path("real.npy").stat().st_mode & 0o777 == 0o600
    np.testing.assert_array_equal(np.load("real.npy"), [4, 0, 2, 3, 3])


def test_json_is_one_object(run):
    np.save("in.npy", np.ones((6, 6), np.float32))
    status, out, err = run("pool", "in.npy", "out.npy", "--op", "lp", "--norm-type", "inf", "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["input"] == {"path": "in.npy", "shape": [6, 6], "dtype": "float32", "mode": None, "array": None}
    assert report["output"] == {"path": "out.npy", "shape": [3, 3], "dtype": "float32"}
    assert report["arguments"]["norm_type"] == "inf"
    assert report["seconds"] > 0
    assert report["copy_seconds"] > 0
    assert report["runs"] >= 1
    assert report["gb_per_s"] == pytest.approx(report["bytes_moved"] / report["seconds"] / 1e9)
    assert report["fraction_of_copy_speed"] == pytest.approx(report["copy_seconds"] / report["seconds"])
    assert report["backend"]
    assert isinstance(report["plan"], dict)


def test_labels_and_draws(run):
    labels = pixels(8, 8) % 3
    np.save("labels.npy", labels)
    status, out, err = run("pool", "labels.npy", "mode.npy", "--op", "mode", "--kernel", "4", "--ignore", "0,7")
    assert (status, err) == (0, "")
    assert "ignoring 0, 7" in out
    import anypool as ap

    np.testing.assert_array_equal(np.load("mode.npy"), ap.pool(labels, "mode", 4, ignore=0))
    np.save("x.npy", labels.astype(float))
    for name in ("first.npy", "again.npy"):  # measuring runs it many times; what is written is the seed's
        assert run("pool", "x.npy", name, "--op", "stochastic", "--seed", "7", "--json")[0] == 0
    wanted = ap.pool(labels.astype(float), "stochastic", 2, generator=np.random.default_rng(7))
    np.testing.assert_array_equal(np.load("first.npy"), wanted)
    np.testing.assert_array_equal(np.load("again.npy"), wanted)


# --- figures, demo, info --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (pixels(90, 70), []),
        (pixels(90, 70, dtype=np.int32), ["--op", "sum"]),
        (RNG.normal(size=(6, 6)), ["--kernel", "3", "--stride", "1", "--padding", "1"]),
        (RNG.normal(size=(2, 20, 50, 60)), ["--kernel", "2x2x2"]),
        (RNG.normal(size=(50, 60)), ["--kernel", "3", "--dilation", "2", "--stride", "1"]),
        (np.full((50, 60), np.nan), []),
        (np.array(SIGNAL), []),
        (RNG.normal(size=(3, 400)), ["--axes", "1", "--kernel", "25"]),
        (RNG.normal(size=30), ["--kernel", "30"]),
        (RNG.normal(size=400), ["--kernel", "3"]),
        (RNG.normal(size=(60, 60)), ["--kernel", "60"]),
        (RNG.normal(size=(1, 60)), ["--kernel", "1x2"]),
        (np.zeros((20, 20), bool), []),
    ],
    ids=lambda value: str(value.shape) if isinstance(value, np.ndarray) else " ".join(value),
)
def test_a_figure_of_an_array(run, x, options):
    np.save("in.npy", x)
    status, out, err = run("pool", "in.npy", "out.npy", "--show", "figure.png", *options)
    assert (status, err) == (0, "")
    assert "figure figure.png" in out
    with Image.open("figure.png") as figure:
        assert min(figure.size) > 400
        assert np.asarray(figure.convert("L")).std() > 10  # not an empty page


@pytest.mark.parametrize(
    ("kernel", "stride", "n", "shown"),
    [
        (3, 3, 400, range(66, 72)),
        (3, 1, 400, range(199, 215)),
        (4, 12, 400, range(17, 19)),
        (25, 1, 400, range(188, 189)),
        (2, 2, 20, range(1, 10)),
    ],
)
def test_boxes_are_of_the_windows_around_the_middle(kernel, stride, n, shown):
    """As many as see 18 inputs together: first those behind the middle, then those before it; one at the least."""
    from anypool.cli import signals
    from anypool.windows import Sliding

    assert signals._middle(Sliding(n, (n - kernel) // stride + 1, kernel, 1, stride)) == shown


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK"])
@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".jpg"])
def test_a_figure_of_an_image(run, mode, suffix):
    Image.fromarray(pixels(64, 96, 3)).convert(mode).save("in.tif")
    assert run("pool", "in.tif", "out.tif", "--op", "mean", "--show", "figure" + suffix)[0] == 0
    assert Path("figure" + suffix).stat().st_size > 1000


def test_lab_is_drawn_as_the_numbers_it_holds(run):
    """Pillow has no conversion for it."""
    picture = pixels(64, 96, 3)
    Image.frombytes("LAB", (96, 64), picture.tobytes()).save("in.tif")
    assert run("pool", "in.tif", "out.tif", "--op", "min", "--show", "figure.png")[0] == 0
    with Image.open("out.tif") as image:
        assert image.mode == "LAB"
        np.testing.assert_array_equal(np.asarray(image), blocks(picture).min(axis=2))
    from anypool.cli import show

    np.testing.assert_array_equal(show._rgb(picture, "LAB"), picture)
    assert Path("figure.png").stat().st_size > 1000


def test_the_demo(run):
    status, out, err = run("demo", "--out", "made")
    assert (status, err) == (0, "")
    assert sorted(os.listdir("made")) == ["photo.png", "shift.png", "signal.png", "windows.png"]
    assert out.split().count("max") >= 2
    assert "4       0       2       3       3" in out
    assert str(Path("made").resolve()) in out


def test_pooling_makes_the_photograph_less_sensitive_to_a_shift():
    from anypool.cli import demo

    shift = demo.shift_experiment(demo._photograph())
    for method in ("max", "mean"):
        values = shift.change[method]
        assert values == sorted(values, reverse=True)  # a larger kernel changes less
    assert shift.change["max"][0] == shift.change["mean"][0] == shift.change["every k-th pixel"][0]  # k = 1: no pooling
    assert shift.change["every k-th pixel"][-1] > shift.change["max"][-1] > shift.change["mean"][-1]


def test_info(run):
    import anypool

    status, out, err = run("info")
    assert (status, err) == (0, "")
    assert out.split()[:2] == ["anypool", anypool.__version__]
    status, out, _ = run("info", "--json")
    found = json.loads(out)
    assert found["packages"]["pillow"]
    assert found["native"]["isa"] in found["native"]["isa_built"]
    assert found["native"]["threads"] >= 1


def test_info_without_the_native_core(run, monkeypatch):
    from anypool import backends

    monkeypatch.setitem(sys.modules, "anypool.backends.native", None)
    monkeypatch.delattr(backends, "native", raising=False)
    status, out, err = run("info")
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("native core")]
    assert re.fullmatch(r"native core +not available: .*anypool\.backends\.native.*", line)
    assert "threads" not in out
    assert "anypool.backends.native" in json.loads(run("info", "--json")[1])["native"]["missing"]


def test_help_and_version(run):
    status, out, _ = run()
    assert status == 0
    assert "pool" in out
    assert "demo" in out
    status, out, _ = run("pool", "--help")
    assert status == 0
    assert "logsumexp" in out
    assert "--count-include-pad" in out
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("anypool ")


def in_new_process(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


def test_as_a_module():
    done = in_new_process("-m", "anypool", "pool", "none.npy", "out.npy")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "anypool: IN does not exist: none.npy\n")


def test_importing_the_module_runs_nothing():
    done = in_new_process("-c", "import anypool.__main__ as m, anypool.cli; print(m.main is anypool.cli.main)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_in_a_thread(run):
    """Only the main thread may set a handler of signals."""
    np.save("x.npy", np.array(SIGNAL))
    before, found = signal.getsignal(signal.SIGTERM), []
    worker = threading.Thread(target=lambda: found.append(cli.main(["pool", "x.npy", "out.npy"])))
    worker.start()
    worker.join()
    assert found == [0]
    np.testing.assert_array_equal(np.load("out.npy"), [4, 0, 2, 3, 3])
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_library_imports_nothing_of_the_command_line():
    heavy = "{'matplotlib', 'PIL', 'typer', 'rich', 'torch'}"
    done = in_new_process("-c", f"import sys, anypool; print({heavy} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


def test_who_pools_images_imports_nothing_of_tokens():
    """Of the package only what every pooling needs: token pooling doubles the time that an import takes."""
    code = (
        "import sys, anypool as ap, numpy as np; ap.vjp(ap.max_pool1d, np.ones((1, 4)), 2)\n"
        "print(sorted(m for m in sys.modules if m.startswith('anypool.')))"
    )
    done = in_new_process("-c", code)
    unwanted = re.findall(r"anypool\.(?:token\w*|attention|state|runs|tensors|cli|arrow|nn)\b", done.stdout)
    assert not unwanted, unwanted
    assert "anypool.operation" in done.stdout, done.stderr


def test_names_are_there_before_they_are_imported():
    code = "import anypool as ap; print(set(ap.__all__) - set(dir(ap))); from anypool import *; PoolState, pool_tokens"
    assert in_new_process("-c", code).stdout == "set()\n"
    done = in_new_process("-c", "import anypool; anypool.no_such")
    assert "AttributeError: module 'anypool' has no attribute 'no_such'" in done.stderr


def test_info_does_not_import_torch():
    code = "import sys; from anypool.cli import main; main(['info']); assert 'torch' not in sys.modules"
    assert in_new_process("-c", code).returncode == 0


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture
def old():
    """An input, and an output that must survive."""
    np.save("in.npy", np.ones((8, 8)))
    Image.fromarray(pixels(8, 8, 3)).save("in.png")
    Path("out.npy").write_bytes(b"old")
    Path("out.png").write_bytes(b"old")
    Path("folder.npy").mkdir()
    Path("folder.png").mkdir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pool"], "IN"),
        (["pool", "in.npy"], "OUT"),
        (["pol"], "pol"),
        (["pool", "in.npy", "out.npy", "--kernl", "2"], "--kernl"),
        (["pool", "in.npy", "out.npy", "--kernel"], "--kernel"),
        (["pool", "in.npy", "out.npy", "more"], "more"),
        (["info", "--jsn"], "--jsn"),
        (["pool", "in.npy", "out.npy", "--kernel", "two"], ["--kernel", "'two'"]),
        (["pool", "in.npy", "out.npy", "--kernel", ""], ["--kernel", "''"]),
        (["pool", "in.npy", "out.npy", "--kernel", "2.5"], ["--kernel", "'2.5'"]),
        (["pool", "in.npy", "out.npy", "--kernel", "2x"], ["--kernel", "'2x'"]),
        (["pool", "in.npy", "out.npy", "--kernel", "0"], ["--kernel", "0"]),
        (["pool", "in.npy", "out.npy", "--kernel", "-2"], ["--kernel", "-2"]),
        (["pool", "in.npy", "out.npy", "--kernel", "99999999999999999999"], ["99999999999999999999"]),
        (["pool", "in.npy", "out.npy", "--kernel", "9"], "9"),
        (["pool", "in.npy", "out.npy", "--kernel", "2x2x2"], ["--kernel", "3", "(8, 8)"]),
        (["pool", "in.npy", "out.npy", "--kernel", "2x2", "--axes", "0"], ["--kernel", "(2, 2)"]),
        (["pool", "in.npy", "out.npy", "--stride", "0"], ["--stride", "0"]),
        (["pool", "in.npy", "out.npy", "--padding", "-3"], ["--padding", "-3"]),
        (["pool", "in.npy", "out.npy", "--padding", "some"], ["--padding", "'some'"]),
        (["pool", "in.npy", "out.npy", "--dilation", "0"], ["--dilation", "0"]),
        (["pool", "in.npy", "out.npy", "--axes", "2"], ["--axes", "2"]),
        (["pool", "in.npy", "out.npy", "--axes", "1,1"], ["--axes", "1,1"]),
        (["pool", "in.npy", "out.npy", "--axes", "x"], ["--axes", "'x'"]),
        (["pool", "in.npy", "out.npy", "--op", "maximum"], ["--op", "'maximum'", "logsumexp"]),
        (["pool", "in.npy", "out.npy", "--op", "max", "--norm-type", "3"], ["--norm-type", "lp"]),
        (["pool", "in.npy", "out.npy", "--op", "lp", "--norm-type", "x"], ["--norm-type", "'x'"]),
        (["pool", "in.npy", "out.npy", "--op", "lp", "--norm-type", "-1"], ["--norm-type", "-1"]),
        (["pool", "in.npy", "out.npy", "--op", "logsumexp", "--r", "nan"], ["--r", "'nan'"]),
        (["pool", "in.npy", "out.npy", "--op", "logsumexp", "--r", "0"], ["--r", "0"]),
        (["pool", "in.npy", "out.npy", "--op", "quantile"], ["--op quantile needs --q"]),
        (["pool", "in.npy", "out.npy", "--op", "quantile", "--q", "2"], ["--q must be between 0 and 1", "2"]),
        (["pool", "in.npy", "out.npy", "--op", "median", "--q", "0.5"], ["--q", "quantile", "median"]),
        (["pool", "in.npy", "out.npy", "--op", "mode"], ["IN must be bool or integer", "float"]),
        (["pool", "in.npy", "out.npy", "--op", "mode", "--ignore", "1.5"], ["--ignore", "'1.5'"]),
        (["pool", "in.npy", "out.npy", "--op", "stochastic"], ["--seed"]),
        (["pool", "in.npy", "out.npy", "--op", "var", "--correction", "-1"], ["--correction", "-1"]),
        (["pool", "in.npy", "out.npy", "--no-count-include-pad"], ["--count-include-pad", "mean"]),
        (["pool", "in.npy", "out.npy", "--dtype", "flot32"], ["--dtype", "'flot32'"]),
        (["pool", "in.npy", "out.npy", "--dtype", "object"], ["--dtype", "'object'"]),
        (["pool", "none.npy", "out.npy"], "IN does not exist: none.npy"),
        (["pool", ".", "out.npy"], "IN must end in"),
        (["pool", "in.txt", "out.npy"], ["IN must end in", "in.txt"]),
        (["pool", "in.npy", "out.txt"], ["OUT must end in", "out.txt"]),
        (["pool", "in.npy", "out"], ["OUT must end in"]),
        (["pool", "in.npy", "none/out.npy"], ["OUT", "folder none does not exist"]),
        (["pool", "in.npy", "out.npy", "--show", "none/figure.png"], ["--show", "folder none does not exist"]),
        (["pool", "in.npy", "out.npy", "--show", "figure.xyz"], ["--show", "figure.xyz"]),
        (["pool", "in.png", "out.png", "--show", "out.png"], ["--show", "OUT"]),
        (["pool", "in.png", "out.png", "--show", "in.png"], ["--show", "IN"]),
        (["pool", "in.png", "out.png", "--op", "lp"], ["OUT", "float64", "out.png", ".npy"]),
        (["pool", "in.png", "out.png", "--op", "sum"], ["OUT", "int64", "out.png", ".npy"]),
        (["pool", "in.png", "out.png", "--op", "mean", "--dtype", "float32"], ["OUT", "float32", "out.png"]),
        (["pool", "in.npy", "out.png"], ["OUT", "float64", "(4, 4)", "out.png"]),
        (["pool", "in.npy", "folder.npy"], "OUT is not a file: folder.npy"),
        (["pool", "in.npy", "out.npy", "--show", "folder.png"], "--show is not a file: folder.png"),
        (["demo", "--out", "none/deeper"], ["--out", "none"]),
        (["demo", "--out", "in.npy"], ["--out", "in.npy"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_arguments(refused, old, arguments, words):
    refused(*arguments, words=words)


def test_a_folder_that_is_not_writable(refused, old, monkeypatch):
    """Asked of the system, which lets root write anywhere."""
    Path("locked").mkdir()
    asked = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and asked(path, mode))
    words = "the folder locked is not writable: locked/"
    refused("pool", "in.npy", "locked/out.npy", words="OUT: " + words + "out.npy")
    refused("pool", "in.npy", "out.npy", "--show", "locked/f.png", words="--show: " + words + "f.png")


def test_a_jpeg_takes_no_transparency(refused):
    Image.fromarray(pixels(8, 8, 4)).save("in.png")
    Path("out.jpg").write_bytes(b"old")
    refused("pool", "in.png", "out.jpg", words=["OUT", "RGBA", "JPEG", "out.jpg"])


def bad_zip_member() -> None:
    with zipfile.ZipFile("bad.npz", "w") as archive:
        archive.writestr("a.npy", b"not an array")


def object_archive() -> None:
    np.savez("bad.npz", a=np.array([{"a": 1}, None], dtype=object))


def cut_image(name: str) -> None:
    Image.fromarray(pixels(64, 64, 3)).save("whole" + name)
    Path("bad" + name).write_bytes(Path("whole" + name).read_bytes()[:1500])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Path("bad.npy").write_bytes(b""), "bad.npy"),
        (lambda: Path("bad.npy").write_bytes(b"no array at all"), "bad.npy"),
        (lambda: Path("bad.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': 'oops'"), "bad.npy"),
        (lambda: np.save("bad.npy", np.array([{"a": 1}], dtype=object)), "bad.npy"),
        (lambda: np.save("bad.npy", np.array(["text"])), "IN"),
        (lambda: np.save("bad.npy", np.ones(4, complex)), "IN"),
        (lambda: np.save("bad.npy", np.float64(3)), "()"),
        (lambda: Path("bad.npz").write_bytes(b""), "bad.npz"),
        (lambda: Path("bad.npz").write_bytes(b"PK not a zip"), "bad.npz"),
        (lambda: np.savez("bad.npz", a=np.ones(3), b=np.ones(3)), "a, b"),
        (lambda: np.savez("bad.npz"), "no array"),
        (bad_zip_member, "bad.npz"),
        (object_archive, "bad.npz"),
        (lambda: Path("bad.png").write_bytes(b""), "bad.png"),
        (lambda: Path("bad.png").write_bytes(b"no image at all"), "bad.png"),
        (lambda: cut_image(".png"), "bad.png"),
        (lambda: cut_image(".jpg"), "bad.jpg"),
        (lambda: cut_image(".tif"), "bad.tif"),
        (lambda: Path("bad.png").mkdir(), "not a file"),
    ],
)
def test_unreadable_files(refused, make, name):
    make()
    bad = next(Path().glob("bad.*"))
    refused("pool", bad, "out.npy", words=name)


def test_a_truncated_array(refused):
    np.save("bad.npy", np.ones((100, 100)))
    os.truncate("bad.npy", 500)
    refused("pool", "bad.npy", "out.npy", words=["IN", "bad.npy"])


def test_a_missing_member_of_an_npz(refused):
    np.savez("two.npz", a=np.ones(3), b=np.ones(3))
    refused("pool", "two.npz:c", "out.npy", words=["'c'", "a, b"])


def test_a_name_with_a_line_break_is_still_one_line(refused):
    refused("pool", "no\nfile.npy", "out.npy", words="IN does not exist")


@pytest.mark.parametrize(("module", "package"), [("PIL", "Pillow"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_named_with_the_extra(refused, old, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    words = [package, 'pip install "anypool[cli]"']
    refused("pool", "in.npy" if module == "matplotlib" else "in.png", "out.npy", "--show", "figure.png", words=words)
    refused("demo", words=words)


def test_a_missing_typer_is_named_with_the_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "anypool.cli.commands")
    monkeypatch.delattr(cli, "commands")
    refused("info", words=["Typer", 'pip install "anypool[cli]"'])


def test_what_is_no_fault_of_the_user_is_a_traceback(monkeypatch, old):
    """And leaves every file as it was; a module of ours that is missing is not blamed on Typer."""

    def broken(*_):
        raise RuntimeError("a mistake of ours")

    before = contents(Path())
    with monkeypatch.context() as patch:
        patch.setattr(files, "write", broken)
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            cli.main(["pool", "in.npy", "out.npy"])
    assert contents(Path()) == before
    monkeypatch.setitem(sys.modules, "anypool.cli.timing", None)
    monkeypatch.delitem(sys.modules, "anypool.cli.commands")
    monkeypatch.delattr(cli, "commands")
    monkeypatch.delattr(cli, "timing")
    with pytest.raises(ModuleNotFoundError, match=r"anypool\.cli\.timing"):
        cli.main(["info"])


# --- failures while writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "status", "word"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("2 GiB"), 1, "not enough memory"),
    ],
    ids=["full disk", "Ctrl-C", "memory"],
)
@pytest.mark.parametrize("where", ["OUT", "--show"])
def test_a_failure_leaves_every_file_as_it_was(refused, old, monkeypatch, failure, status, word, where):
    from anypool.cli import show

    Path("figure.png").write_bytes(b"old figure")

    def fail(first, second, *rest):
        file = first if where == "OUT" else second
        file.write(b"half of the file")
        raise failure

    monkeypatch.setattr(*((files, "write") if where == "OUT" else (show, "save")), fail)
    refused("pool", "in.npy", "out.npy", "--show", "figure.png", words=word, status=status)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(28, "No space left on device"), 1, "cannot write: No space left on device; no file was changed"),
        (OSError("encoder error -2"), 2, "OUT cannot be written as PNG: out.png: encoder error -2"),
    ],
    ids=["the disk", "the picture"],
)
def test_what_failed_in_a_picture(refused, old, monkeypatch, error, status, words):
    def fail(image, file, **_):
        file.write(b"half of the file")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    refused("pool", "in.png", "out.png", words=words, status=status)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_being_terminated_leaves_every_file_as_it_was(refused, old, monkeypatch):
    monkeypatch.setattr(files, "write", lambda *rest: os.kill(os.getpid(), signal.SIGTERM))
    refused("pool", "in.npy", "out.npy", words="terminated", status=143)


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif"])
def test_a_file_that_cannot_grow_leaves_the_old_one(suffix):
    """A real failing write, by the operating system's limit on a file's size."""
    np.save("in.npy", np.ones((1000, 1000), np.float32))
    Path("out" + suffix).write_bytes(b"old")
    before = contents(Path())
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    code = f"{limit}; from anypool.cli import main; raise SystemExit(main(['pool', 'in.npy', 'out{suffix}']))"
    done = in_new_process("-c", code)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot write" in done.stderr
    assert contents(Path()) == before


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("room", [0, 130, 500])
def test_a_small_array_that_does_not_fit_is_told(room):
    """What fits into one buffer is written when the file is closed, where NumPy does not look."""
    np.save("in.npy", np.ones((32, 32), np.float32))
    np.save("tokens.npy", np.ones((9, 3, 16), np.float32))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    for command in (["pool", "in.npy", "out.npy"], ["tokens", "tokens.npy", "out.npy"]):
        code = f"{limit}; from anypool.cli import main; raise SystemExit(main({command}))"
        done = in_new_process("-c", code)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "cannot write" in done.stderr
        assert not Path("out.npy").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_table_that_does_not_fit_is_no_fault_of_its_source(suffix):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from anypool.arrow import vectors

    pq.write_table(pa.table({"tokens": vectors(list(np.random.default_rng(0).random((50, 3, 64))))}), "in.parquet")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    command = ["tokens", "in.parquet", f"out{suffix}"]
    done = in_new_process("-c", f"{limit}; from anypool.cli import main; raise SystemExit(main({command}))")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr == "anypool: cannot write: File too large; no file was changed\n"
    assert not Path(f"out{suffix}").exists()


def test_a_reader_that_leaves_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m anypool info | true", shell=True, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
