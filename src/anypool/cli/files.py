"""Read and write what the command line pools: images through Pillow, arrays through NumPy.

Everything that can be wrong with a file becomes an `InputError`: one line that names the argument and the value.
Pickled arrays are never loaded, and a file is never written in place (see `replacing`).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anypool import limits

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]

IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
ARRAY_FORMATS = (".npy", ".npz")
KNOWN = ", ".join([*IMAGE_FORMATS, *ARRAY_FORMATS])

# Pillow's modes as arrays: the dtype and the number of channels (1 means no channel axis).
MODES = {
    "1": ("bool", 1),
    "L": ("uint8", 1),
    "LA": ("uint8", 2),
    "RGB": ("uint8", 3),
    "RGBA": ("uint8", 4),
    "CMYK": ("uint8", 4),
    "YCbCr": ("uint8", 3),
    "LAB": ("uint8", 3),
    "I;16": ("uint16", 1),
    "I": ("int32", 1),
    "F": ("float32", 1),
}
WRITABLE = {
    "PNG": ("1", "L", "LA", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB"),
}
# Satellite and microscope images are far beyond Pillow's own limit (0.09 Gpixel); a gigapixel is still a real file.
MAX_PIXELS = 2**30


class InputError(Exception):
    """Something the caller can put right; the message is one line naming the argument and the value."""


@dataclass(frozen=True)
class Source:
    """An array as it was read, and what is needed to write the result the same way."""

    array: Array
    mode: str | None = None  # Pillow's mode, for an image
    profile: bytes | None = None  # the image's ICC colour profile
    member: str | None = None  # the array's name inside an .npz
    notes: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        """Whether it came from a picture, so that its first axes are height and width."""
        return self.mode is not None


def need(module: str, package: str, extra: str = "cli") -> None:
    """Refuse with the extra's name when an optional package is missing."""
    try:
        __import__(module)
    except ImportError:
        raise InputError(f'{package} is not installed: pip install "anypool[{extra}]"') from None


def split_member(text: str) -> tuple[Path, str | None]:
    """`data.npz:weights` -> (data.npz, "weights"); anything else is a plain path."""
    named = re.fullmatch(r"(.*\.npz):(.+)", text, flags=re.IGNORECASE | re.DOTALL)
    if named and not os.path.exists(text):
        return Path(named[1]), named[2]
    return Path(text), None


def read(text: str) -> Source:
    """Read the argument IN: an image, an .npy (memory-mapped) or one array of an .npz."""
    path, member = split_member(text)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_FORMATS and suffix not in ARRAY_FORMATS:
        raise InputError(f"IN must end in one of {KNOWN}, got {path}")
    if not path.exists():
        raise InputError(f"IN does not exist: {path}")
    if not path.is_file():
        raise InputError(f"IN is not a file: {path}")
    try:
        if suffix in IMAGE_FORMATS:
            return _read_image(path)
        return _read_npz(path, member) if suffix == ".npz" else _read_npy(path)
    except MemoryError:
        raise InputError(f"IN does not fit in memory: {path}") from None
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"IN cannot be read: {path}: {error.strerror or error}") from None
    except Exception as error:  # decoders and NumPy's header parser raise whatever a corrupt file makes them trip over
        raise InputError(f"IN is not a readable {suffix} file: {path}: {error}") from None


def _read_npy(path: Path) -> Source:
    # open_memmap knows no pickles: an object array is refused, whatever the header says.
    return Source(np.lib.format.open_memmap(path, mode="r"))


def _read_npz(path: Path, member: str | None) -> Source:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise InputError(f"IN is not an .npz (zip) file: {path}")
        file.seek(0)
        archive = np.load(file, allow_pickle=False)
        names = ", ".join(archive.files) or "no array"
        if member is None and len(archive.files) != 1:
            raise InputError(f"IN holds {names}: choose one as {path}:NAME")
        name = archive.files[0] if member is None else member
        if name not in archive.files:
            raise InputError(f"IN has no array {name!r}: {path} holds {names}")
        check_members(archive, name)
        array = archive[name]
    if not isinstance(array, np.ndarray):
        raise InputError(f"IN: {name!r} in {path} is not an array")
    return Source(array, member=name)


def check_members(archive: Any, name: str | None = None) -> None:
    """Refuse an archive that unpacks to more than there is memory for: it says itself to how much."""
    for member in archive.zip.infolist():
        if name is None or member.filename in (name, f"{name}.npy"):
            limits.require(member.file_size, f"{member.filename} of {archive.zip.filename or 'IN'}")


@contextmanager
def _quiet_pillow() -> Iterator[Any]:
    """Pillow, with its size limit raised and without the many lines it warns and logs about odd metadata."""
    need("PIL", "Pillow")
    from PIL import Image

    logger, limit = logging.getLogger("PIL"), Image.MAX_IMAGE_PIXELS
    level = logger.level
    try:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Image
    finally:
        Image.MAX_IMAGE_PIXELS = limit
        logger.setLevel(level)


def _read_image(path: Path) -> Source:
    with _quiet_pillow() as pillow:
        try:
            opened = pillow.open(path, formats=("PNG", "JPEG", "TIFF"))
        except pillow.UnidentifiedImageError:
            raise InputError(f"IN is not a readable PNG, JPEG or TIFF image: {path}") from None
        with opened as image:
            notes = []
            if getattr(image, "n_frames", 1) > 1:
                notes.append(f"only the first of its {image.n_frames} pictures is pooled")
            if not image.mode.startswith("I;16") and any(";16" in str(tile[-1]) for tile in image.tile):
                notes.append("Pillow reads 16-bit colour as 8-bit; use an .npy to keep all bits")
            image.load()
            profile = image.info.get("icc_profile")
            upright, more = _upright_and_plain(image)
            array = np.asarray(upright)
            mode = "I;16" if upright.mode.startswith("I;16") else upright.mode
            if mode == "I;16":
                array = array.astype(np.uint16)  # big-endian files keep their byte order until here
    return Source(array, mode=mode, profile=profile, notes=(*notes, *more))


def _upright_and_plain(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Turn a photograph upright and give it a mode whose numbers can be pooled (palette indices cannot)."""
    from PIL import ImageOps

    notes = []
    size = image.size
    if image.getexif().get(0x0112, 1) != 1:  # the EXIF orientation; the result carries no EXIF, so turn the pixels
        image = ImageOps.exif_transpose(image)
        notes.append(f"turned upright as its EXIF orientation says (stored {size[0]} x {size[1]})")
    kind = image.mode
    if kind in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        notes.append(f"palette converted to {image.mode}")
    elif kind in ("L", "RGB") and image.has_transparency_data:
        image = image.convert("LA" if kind == "L" else "RGBA")
        notes.append(f"transparent colour converted to {image.mode}")
    elif kind not in MODES and not kind.startswith("I;16"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(kind, "RGB"))
        notes.append(f"mode {kind} converted to {image.mode}")
    return image, notes


def check_output(text: str, option: str, suffixes: tuple[str, ...]) -> Path:
    """Refuse, before any work, a path that cannot be written: extension, folder, kind of file."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{option} must end in one of {', '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder {path.parent} does not exist: {path}")
    if path.exists() and not path.is_file():
        raise InputError(f"{option} is not a file: {path}")
    if not os.access(path.resolve().parent, os.W_OK):
        raise InputError(f"{option}: the folder {path.parent} is not writable: {path}")
    return path


def image_mode(dtype: np.dtype[Any], shape: tuple[int, ...], source: Source, path: Path) -> str:
    """Return Pillow's mode for a result, the source's own where it fits; refuse what the format cannot hold."""
    suffix = IMAGE_FORMATS[path.suffix.lower()]
    channels = 1 if len(shape) == 2 else shape[2] if len(shape) == 3 else 0
    kind = (dtype.name, channels)
    candidates = [source.mode] if source.mode and MODES[source.mode] == kind else []
    candidates += [mode for mode, held in MODES.items() if held == kind and mode in WRITABLE[suffix]][:1]
    if 0 in shape:
        raise InputError(f"OUT: an image cannot be empty, the result is {shape}: {path}")
    for mode in candidates[:1]:
        if mode in WRITABLE[suffix]:
            return mode
    kinds = dict.fromkeys(MODES[mode] for mode in WRITABLE[suffix])
    holds = "; ".join(f"{name} of {count} channel{'s'[: count > 1]}" for name, count in kinds)
    what = f"{dtype.name} {shape}" + (f" ({candidates[0]})" if candidates else "")
    raise InputError(f"OUT cannot hold the result, {what}: {path} ({suffix} holds {holds}); write an .npy instead")


def check_archive(path: Path, given: str, source: Source) -> None:
    """Refuse to replace the .npz that IN is an array of, where it holds other arrays: they would be lost."""
    if path.suffix.lower() != ".npz" or not path.exists() or not path.samefile(split_member(given)[0]):
        return
    with zipfile.ZipFile(path) as archive:
        others = [name.removesuffix(".npy") for name in archive.namelist()]
    if others := [name for name in others if name != _name_in_archive(source)]:
        raise InputError(f"OUT is IN, and holds other arrays, which would be lost ({', '.join(others)[:200]}): {path}")


def _name_in_archive(source: Source) -> str:
    return source.member or "arr_0"


def write(file: IO[bytes], path: Path, array: Array, source: Source) -> None:
    """Write a result in the format the path's extension names."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        write_npy(file, array)
    elif suffix == ".npz":
        _write_npz(file, array, _name_in_archive(source))
    else:
        _write_image(file, path, array, source)


def write_npy(file: IO[bytes], array: Array) -> None:
    """Write as `np.save` does, but through ``file`` alone.

    To a file of the system NumPy writes by the C library, and never learns that its last few kilobytes did not fit: a
    small array on a full disk was cut off without a word.
    """
    stream: Any = SimpleNamespace(write=file.write)
    np.save(stream, array, allow_pickle=False)


def _write_npz(file: IO[bytes], array: Array, name: str) -> None:
    """Write one array; `np.savez` takes its names as keywords, so an array called `file` would not do."""
    with zipfile.ZipFile(file, "w") as archive, archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _write_image(file: IO[bytes], path: Path, array: Array, source: Source) -> None:
    from PIL import Image

    mode = image_mode(array.dtype, array.shape, source, path)
    if mode == "1":
        image = Image.fromarray(array)  # packs eight pixels to a byte, which frombytes would leave to us
    else:
        image = Image.frombytes(mode, (array.shape[1], array.shape[0]), np.ascontiguousarray(array).tobytes())
    form = IMAGE_FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {"icc_profile": source.profile} if source.profile else {}
    if form == "JPEG":
        options["quality"] = 95  # Pillow's 75 shows blocks in a small picture
    try:
        image.save(file, format=form, **options)
    except OSError as error:
        if error.errno is not None:  # the disk's failure, not the picture's
            raise
        raise InputError(f"OUT cannot be written as {form}: {path}: {error}") from None
    except (ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"OUT cannot be written as {form}: {path}: {error}") from None


@contextmanager
def replacing(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Write beside each path and rename when all went well: a failure leaves the old files, or none, and no rest.

    Because an old file is only replaced at the end, OUT may be the same file as IN (which may be memory-mapped).
    """
    targets = [path.resolve() for path in paths]  # a symbolic link stays one
    beside = [target.with_name(f".{secrets.token_hex(8)}.anypool.tmp") for target in targets]
    try:
        with ExitStack() as stack:
            written: list[IO[bytes]] = [stack.enter_context(path.open("xb")) for path in beside]
            for path, target in zip(beside, targets, strict=True):
                if target.exists():
                    os.chmod(path, stat.S_IMODE(target.stat().st_mode))
            yield written
            for file in written:
                file.flush()
                os.fsync(file.fileno())  # some file systems report a full disk only here
        for path, target in zip(beside, targets, strict=True):
            os.replace(path, target)
    except BaseException:  # Ctrl-C too
        for path in beside:
            path.unlink(missing_ok=True)
        raise
