"""Every error raised on purpose ends a command with one line and its exit code."""

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import typer

from cluster import errors
from cluster.cli import JsonOption, Output, main, new_app


def _all_errors() -> list[type[errors.RaybridgeError]]:
    found = [errors.RaybridgeError]
    for error in found:
        found.extend(error.__subclasses__())
    return [error for error in found if error.__module__ == "cluster.errors"]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for error in _all_errors():
        assert error.__name__ in errors.__doc__


def test_what_the_caller_can_correct_is_exit_code_2() -> None:
    for error in _all_errors():
        assert error.exit_code == (2 if issubclass(error, errors.UserError) else 1)


def _run(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *arguments: str
) -> int | str | None:
    app = new_app("A test.")

    @app.command()
    def work(as_json: JsonOption = False) -> None:
        """Do it."""
        output = Output(as_json)
        output.say("working")
        if error is not None:
            raise error
        output.result({"done": True})

    @app.command()
    def other() -> None:
        """Make it a group."""

    monkeypatch.setattr("sys.argv", ["prog", *arguments])
    with pytest.raises(SystemExit) as ended:
        main(app, "prog")
    return ended.value.code


@pytest.mark.parametrize("error", _all_errors())
def test_one_line_on_standard_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[errors.RaybridgeError],
) -> None:
    code = _run(monkeypatch, error("what is wrong\n   and where"), "work")
    captured = capsys.readouterr()
    assert code == error.exit_code
    assert captured.err == "error: what is wrong and where\n"
    assert captured.out == "working\n"


def test_json_tells_of_the_error_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run(monkeypatch, errors.ConfigError("no such field"), "work", "--json")
    captured = capsys.readouterr()
    assert code == 2
    assert json.loads(captured.out) == {"error": "no such field", "exit_code": 2}


def test_json_is_all_of_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, None, "work", "--json") == 0
    captured = capsys.readouterr()
    assert captured.out == '{"done": true}\n'
    assert "working" in captured.err


def test_an_interrupt_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, KeyboardInterrupt(), "work", "--json") == 130
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert json.loads(captured.out) == {"error": "interrupted", "exit_code": 130}


def test_a_command_decides_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, typer.Exit(7), "work") == 7


def test_an_unknown_option_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, None, "work", "--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app("A test.")

    @app.command()
    def work() -> None:
        """Do it."""
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["prog"])
    with pytest.raises(ZeroDivisionError):
        main(app, "prog")


def test_the_json_line_of_another_command_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["prog", "work", "--", "other", "--json"])
    app = new_app("A test.")

    @app.command()
    def work(command: list[str]) -> None:
        """Do it."""
        raise errors.ConfigError(" ".join(command))

    @app.command()
    def other() -> None:
        """Make it a group."""

    with pytest.raises(SystemExit):
        main(app, "prog")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: other --json\n")


def test_sigterm_ends_a_command_in_good_order(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        "from cluster.cli import main, new_app\n"
        "app = new_app('A test.')\n"
        "@app.command()\n"
        "def work(as_json: bool = False):\n"
        "    try:\n"
        "        print('working', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('tidied', flush=True)\n"
        "@app.command()\n"
        "def other(): ...\n"
        "main(app, 'prog')\n"
    )
    command = [sys.executable, str(program), "work"]
    with subprocess.Popen(command, text=True, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "tidied\n", "terminated\n")


def test_a_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table("[b]title", ["[i]column"], [["file [copy].png"], ["[/x]"]])
    shown = capsys.readouterr().out
    for text in ("[b]title", "[i]column", "file [copy].png", "[/x]"):
        assert text in shown
