"""What the texts of arguments mean, and what a wrong one is told."""

from typing import Any

import pytest
from inside import RunInside

from cluster.errors import ConfigError
from train.arguments import parse_workers


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("2", {"workers": 2, "min_workers": None}),
        ("1:4", {"workers": 4, "min_workers": 1}),
        ("3:3", {"workers": 3, "min_workers": 3}),
    ],
)
def test_workers_are_a_number_or_a_range(text: str, fields: dict[str, Any]) -> None:
    assert parse_workers(text) == fields


@pytest.mark.parametrize("text", ["0", "0:2", "4:1", "-1", "1:", ":4", "two", "1:2:3", ""])
def test_other_workers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--workers {text}: expected a number such as 2, or "):
        parse_workers(text)


def test_arguments_reach_the_configuration(run_inside: RunInside) -> None:
    fit = ("train", "fit", "digits", "--show", "--json", "--exact")
    shown = run_inside(*fit, "--workers", "1:4")
    assert shown.exit_code == 0, shown.stderr
    resources, exact = shown.json["resources"], shown.json["exact"]
    assert (resources["workers"], resources["min_workers"], exact["shards"]) == (4, 1, 4)
    shown = run_inside(*fit, "--set", "exact.shards=8", "--workers", "8")
    assert shown.json["exact"]["shards"] == 8
