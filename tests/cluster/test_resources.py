"""The one line that says there are too few CPUs, and the names in it."""

import pytest

from cluster.resources import (
    Holder,
    Node,
    Resources,
    actor_name,
    job_name,
    merged,
    room_for,
    shortage,
)

RUN = Holder("run digits-3", "placement group", 2, 0)
APPLICATION = Holder("Serve application digits, deployment Model", "actor", 0.5, 1)


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (Resources(1), "1 CPU"),
        (Resources(2), "2 CPUs"),
        (Resources(0), "0 CPUs"),
        (Resources(0.5, 1), "0.5 CPUs and 1 GPU"),
        (Resources(0, 2), "2 GPUs"),
        (Resources(0.999999), "1 CPU"),
        (Resources(0.997), "0.99 CPUs"),
    ],
)
def test_amounts_as_text(resources: Resources, text: str) -> None:
    assert str(resources) == text


def test_covers() -> None:
    assert Resources(2, 1).covers(Resources(2, 1))
    assert Resources(1.99999).covers(Resources(2)), "Ray counts in units of 1/10,000"
    assert not Resources(1.99).covers(Resources(2))
    assert not Resources(8, 0).covers(Resources(1, 1))


def node(free: Resources, total: Resources, address: str = "10.0.0.1") -> Node:
    return Node(address, total, free)


def test_what_exists_and_is_held() -> None:
    only = node(Resources(0), Resources(2))
    line = shortage("fit with 2 workers", Resources(1), 2, [only], [RUN])
    assert line == (
        "fit with 2 workers needs 2 CPUs; 0 CPUs of 2 CPUs free; held by run digits-3 (2 CPUs); "
        "wait, stop one of them, or ask for less"
    )


def test_what_does_not_exist() -> None:
    line = shortage("fit", Resources(64), 1, [node(Resources(1), Resources(2))], [])
    assert line == (
        "fit needs 64 CPUs; this cluster has 2 CPUs in all, 1 CPU free; "
        "ask for less, or add machines"
    )


def test_gpus_that_are_not_there_are_named() -> None:
    line = shortage("fit", Resources(1, 2), 1, [node(Resources(2), Resources(2))], [])
    assert "needs 1 CPU and 2 GPUs; this cluster has 2 CPUs and 0 GPUs in all" in line


def test_many_holders_are_counted() -> None:
    holders = [Holder(f"run {number}", "actor", 1, 0) for number in range(6)]
    line = shortage("fit", Resources(7), 1, [node(Resources(0), Resources(8))], holders)
    assert "run 3 (1 CPU) and 2 more" in line
    assert "run 4" not in line


def test_no_piece_is_split_over_two_machines() -> None:
    assert room_for(Resources(2), [Resources(3), Resources(3), Resources(1)]) == 2
    assert room_for(Resources(1, 1), [Resources(8, 0), Resources(1, 2)]) == 1
    assert room_for(Resources(0, 1), [Resources(0, 2)]) == 2
    assert room_for(Resources(1), [Resources(0.99999)]) == 1, "Ray counts in units of 1/10,000"


def test_enough_in_all_but_not_on_any_machine() -> None:
    small = [node(Resources(1), Resources(2), "a"), node(Resources(2), Resources(2), "b")]
    assert shortage("fit", Resources(3), 1, small, []) == (
        "fit needs 3 CPUs on one machine; there are 2 CPUs on a, 2 CPUs on b; "
        "ask for less, or add machines"
    )
    held = [node(Resources(1), Resources(2), "a"), node(Resources(3), Resources(4), "b")]
    assert shortage("fit with 2 workers", Resources(2), 2, held, [RUN]) == (
        "fit with 2 workers needs 2 times 2 CPUs, each on one machine; free are 3 CPUs on b, "
        "1 CPU on a; held by run digits-3 (2 CPUs); wait, stop one of them, or ask for less"
    )


def test_replicas_are_added_up_and_the_largest_is_first() -> None:
    small = Holder("a", "actor", 0.25, 0)
    assert merged([small, small, RUN, APPLICATION]) == [
        APPLICATION,
        RUN,
        Holder("a", "actor", 0.5, 0),
    ]


@pytest.mark.parametrize(
    ("name", "class_name", "called"),
    [
        ("SERVE_REPLICA::digits#Model#x1", "R", "Serve application digits, deployment Model"),
        ("_ray_internal_job_actor_nightly", "JobSupervisor", "job nightly"),
        ("", "module.make.<locals>.Client", "actor Client of run a"),
        ("pool-1", "Client", "actor pool-1 of run a"),
    ],
)
def test_actors(name: str, class_name: str, called: str) -> None:
    assert actor_name(name, class_name, "run a") == called


@pytest.mark.parametrize(
    ("label", "entrypoint", "called"),
    [
        ("run a", "python -m train fit", "run a"),
        ("", "/home/me/.venv/bin/python3.11 -m train fit digits", "python -m train fit digits"),
        ("", "train.sh --fast", "train.sh --fast"),
        ("", "it's broken", "it's broken"),
        ("", "", ""),
        ("", "python " + "x" * 80, "python " + "x" * 50 + "..."),
    ],
)
def test_drivers(label: str, entrypoint: str, called: str) -> None:
    assert job_name(label, entrypoint) == called
