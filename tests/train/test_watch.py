"""What the driver makes of what the workers tell."""

from finished import make_history
from tfrecords import scalars

from cluster.dataset import Dataset
from cluster.events import Event, make_event
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.recipes import get_recipe
from train.runs import create_run
from train.watch import Watch

HISTORY = make_history(3, steps_per_epoch=10)


def test_events_go_to_the_log_to_mlflow_and_to_tensorboard(
    store: Store, settings: Settings, digits_dataset: Dataset
) -> None:
    run = create_run(store, get_recipe("digits"), digits_dataset, "one")
    tracking = Tracking(settings)
    log = tracking.start_run("one", {}, {})
    heard: list[Event] = []
    watch = Watch(run, log, heard.append)
    workers = [{"host": "here", "pid": 1}]
    start = make_event("start", {"step": 0, "total_steps": 20, "workers": workers, "history": []})
    events = [make_event("note", {"text": "one thing"}), start]
    events += [make_event("epoch", entry) for entry in HISTORY]
    events += [make_event("checkpoint_failures", {"count": 2, "newest": "full"})]
    watch(events[:2])
    watch(events[2:])
    watch.close()
    log.finish("FINISHED")
    assert heard == events
    assert run.events("note") == events[:1]
    assert watch.starts == 1
    assert watch.failures() == {"checkpoints": 2, "events": 0, "tensorboard": 0, "tracking": 0}
    recorded = tracking.run("one").metrics
    for name in ("grad_norm", "val_loss", "lr"):
        assert recorded[name] == HISTORY[-1][name]
    assert scalars(run.tensorboard.path)["grad_norm"].keys() == {10, 20, 30}


def test_an_epoch_that_was_not_told_before_a_kill_is_told_by_those_that_go_on(
    store: Store, settings: Settings, digits_dataset: Dataset
) -> None:
    run = create_run(store, get_recipe("digits"), digits_dataset, "one")
    tracking = Tracking(settings)
    log = tracking.start_run("one", {}, {})
    watch = Watch(run, log, lambda _: None)
    watch([start_event(0, 0), make_event("epoch", HISTORY[0])])
    # A worker is killed, and then the driver.
    watch([start_event(20, 2)])
    watch.close()
    for _ in range(2):
        watch = Watch(run, log, lambda _: None)
        watch([start_event(30, 3)])
        watch.close()
    assert [event["epoch"] for event in run.events("epoch")] == [1, 2, 3]
    assert [event["step"] for event in run.events("start")] == [0, 20, 30, 30]
    assert not any("history" in event for event in run.events("start"))
    assert tracking.run("one").metrics["val_loss"] == HISTORY[2]["val_loss"]


def start_event(step: int, epochs: int) -> Event:
    values = {"step": step, "total_steps": 30, "workers": [], "history": HISTORY[:epochs]}
    return make_event("start", values)
