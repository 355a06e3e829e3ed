"""What every command shares: exit codes, tables, and the JSON line."""

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import RaybridgeError

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="End standard output with one line of JSON: the result."),
]

_TERMINATED = 128 + signal.SIGTERM
_TERMINATED_CODES = (_TERMINATED, signal.SIGTERM)  # Ours, and that of Ray's handler.


class Output:
    """Where a command speaks.

    For people everything goes to standard output. With ``--json`` it goes to standard error, and
    standard output carries one JSON object on its last line.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            # Nobody reads a file or a pipe at 80 columns, and names must not be cut short there.
            self.console.width = 200

    def say(self, text: str) -> None:
        """Print one line of plain text."""
        self.console.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table; numbers should come formatted."""
        # As Text, names are shown as they are: brackets in a string would be Rich's markup.
        table = Table(title=Text(title), title_justify="left", header_style="bold")
        for i, column in enumerate(columns):
            # The first names the row: it may be folded, but not cut.
            table.add_column(Text(column), overflow="ellipsis" if i else "fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self.console.print(table)

    def result(self, value: dict[str, Any]) -> None:
        """Print the JSON line, if it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()


def new_app(help_text: str) -> typer.Typer:
    """A command group with the settings that all of ours share."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(app: typer.Typer, program: str) -> NoReturn:
    """Run a command group; errors raised on purpose become one line and their exit code.

    SIGTERM ends a command as Ctrl-C does, so that nothing half-made stays.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(app, program)
    finally:
        signal.signal(signal.SIGTERM, before)


def run_program(app: typer.Typer, program: str) -> NoReturn:
    """:func:`main` as all that a process does: it ends as soon as what is to be done at exit is.

    The interpreter would take itself apart first. That takes seconds where PyTorch and Ray are
    loaded, and threads of theirs that are still at work crash in it.
    """
    try:
        main(app, program)
    except SystemExit as ended:
        exit_code = ended.code
    if not isinstance(exit_code, int | None):
        raise SystemExit(exit_code)
    threading._shutdown()  # type: ignore[attr-defined]  # Waits for those that are no daemons.
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code or 0)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)


def _run(app: typer.Typer, program: str) -> NoReturn:
    try:
        app(prog_name=program)
    except RaybridgeError as error:
        _fail(" ".join(str(error).split()), error.exit_code, error.details)
    except BrokenPipeError:
        _leave_unread(0)
    except OSError as error:
        # A full disk, a folder that may not be read: the machine's own words say it best.
        where = f"{error.filename}: " if error.filename else ""
        _fail(" ".join(f"{where}{error.strerror or error}".split()), 1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code in _TERMINATED_CODES:
            _fail("terminated", _TERMINATED, prefix="")
        # Typer turns an interrupt into an exit of its own.
        cause = ended if isinstance(ended, KeyboardInterrupt) else ended.__context__
        if not isinstance(cause and (cause.__cause__ or cause), KeyboardInterrupt):
            raise
        _fail("interrupted", 130, prefix="")
    raise AssertionError("typer always exits")


def _fail(
    message: str, exit_code: int, details: Mapping[str, Any] | None = None, prefix: str = "error: "
) -> NoReturn:
    try:
        sys.stderr.write(f"{prefix}{message}\n")
        own = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
        if "--json" in own:
            line = {"error": message, "exit_code": exit_code, **(details or {})}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        _leave_unread(exit_code)
    sys.exit(exit_code)


def _leave_unread(exit_code: int) -> NoReturn:
    # The reader went away, as `head` does. Keep the interpreter from flushing into it again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)
