"""The `anypool` command: run it, and turn every failure a user can cause into one line and an exit status.

The commands themselves are in `commands.py`, imported here so that a missing Typer is one line as well.
Exit status: 0 done; 2 bad input; 1 the machine failed (full disk, memory); 130 Ctrl-C, 143 terminated.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

BAD_INPUT = 2
MACHINE_FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 141  # 128 + SIGPIPE, which Windows does not have


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; default `sys.argv[1:]`.
    """
    try:
        from anypool.cli import commands, files
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "typer":
            raise
        return _fail('Typer is not installed: pip install "anypool[cli]"', BAD_INPUT)
    for stream in (sys.stdout, sys.stderr):
        # A file name may hold bytes the terminal cannot show; printing it must not fail after the work is done.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with _terminate_as_exception():
        try:
            status = commands.app(
                args=None if arguments is None else list(arguments), prog_name="anypool", standalone_mode=False
            )
            sys.stdout.flush()
        except files.InputError as error:
            return _fail(str(error), BAD_INPUT)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except _Terminated:
            return _fail("terminated; no file was changed", TERMINATED)
        except BrokenPipeError:  # `anypool ... | head`: nobody is reading any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"cannot write: {where}{error.strerror or error}; no file was changed", MACHINE_FAILED)
        except MemoryError as error:
            return _fail(f"not enough memory: {error}".removesuffix(": "), MACHINE_FAILED)
        except Exception as error:
            # Typer's own usage errors. Since 0.26 Typer carries its own copy of Click, so no class serves all versions.
            if not hasattr(error, "format_message"):
                raise
            return _fail(str(error.format_message()), BAD_INPUT)
    if status == INTERRUPTED:
        return _fail("interrupted; no file was changed", INTERRUPTED)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    with contextlib.suppress(OSError):  # a closed stderr must not hide the exit status
        print(f"anypool: {line}", file=sys.stderr)
    return status


class _Terminated(BaseException):
    """SIGTERM, as an exception so that the half-written file beside the target is removed."""


@contextlib.contextmanager
def _terminate_as_exception() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
