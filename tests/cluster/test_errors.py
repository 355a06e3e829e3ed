"""Every error raised on purpose ends a command with one line and its exit code."""

import json

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
