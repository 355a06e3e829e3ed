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

HISTORY = make_history(2, steps_per_epoch=10)


def test_events_go_to_the_log_to_mlflow_and_to_tensorboard(
    store: Store, settings: Settings, digits_dataset: Dataset
) -> None:
    run = create_run(store, get_recipe("digits"), digits_dataset, "one")
    tracking = Tracking(settings)
    log = tracking.start_run("one", {}, {})
    heard: list[Event] = []
    watch = Watch(run, log, heard.append)
    workers = [{"host": "here", "pid": 1}]
    start = make_event("start", {"step": 0, "total_steps": 20, "workers": workers})
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
    assert scalars(run.tensorboard.path)["grad_norm"].keys() == {10, 20}
