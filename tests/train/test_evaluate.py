"""Views of an image that are averaged, and data that a run does not fit."""

import numpy as np
import pytest
import torch
from datasets import write_dataset
from finished import finish_run
from torch import Tensor, nn

from cluster.dataset import ChannelStatistics, Dataset
from cluster.errors import DataError
from cluster.store import Store
from train.evaluate import Views, evaluate_run, evaluate_views, view_logits
from train.export import load_classifier
from train.models.classifier import Classifier
from train.recipes import get_recipe


class Flat(nn.Module):
    """The pixels themselves as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def airbench_views(pixels: Tensor) -> Tensor:
    """The six views, one by one: weights 1/4, 1/4 and four times 1/8."""
    total = torch.zeros_like(pixels)
    for mirror in (False, True):
        total += 0.25 * (pixels.flip(-1) if mirror else pixels)
        for shift in (-1, 1):
            height, width = pixels.shape[-2:]
            rows = [abs(min(i, 2 * (height - 1) - i)) for i in range(shift, height + shift)]
            columns = [abs(min(i, 2 * (width - 1) - i)) for i in range(shift, width + shift)]
            moved = pixels[..., rows, :][..., columns]
            total += 0.125 * (moved.flip(-1) if mirror else moved)
    return total


def test_six_views_are_weighted_as_airbench_does() -> None:
    images = torch.randint(0, 256, (3, 2, 5, 4), dtype=torch.uint8)
    classifier = Classifier(Flat(), ChannelStatistics(mean=(0.0,), std=(1 / 255,))).eval()
    got = view_logits(classifier, images, "mirror-translate")
    torch.testing.assert_close(got, airbench_views(images.float()).flatten(1))
    mirror = view_logits(classifier, images, "mirror")
    torch.testing.assert_close(mirror, (images.float() + images.flip(-1)).flatten(1) / 2)


@pytest.mark.parametrize("views", ["mirror", "mirror-translate"])
def test_views_change_no_figure_that_is_kept(
    store: Store, digits_dataset: Dataset, views: Views
) -> None:
    store.datasets.mkdir(parents=True)
    (store.datasets / "digits").symlink_to(digits_dataset.path.parent)
    config = get_recipe("digits").with_changes({"data": "digits@1"}, "test")
    run = finish_run(store, config, digits_dataset, "one")
    plain = evaluate_run(run, store, "test")
    averaged = evaluate_views(run, store, "test", views)
    assert averaged.images == plain.images == 359
    assert averaged.loss != plain.loss
    assert run.evaluation("test") == plain
    classifier = load_classifier(run, digits_dataset)
    images = torch.from_numpy(np.array(digits_dataset.split("test").take(slice(None))))
    with torch.inference_mode():
        found = view_logits(classifier, images, views).argmax(1).numpy()
    assert averaged.accuracy == (found == digits_dataset.split("test").labels).mean()


def test_other_classes_are_refused(store: Store, digits_dataset: Dataset) -> None:
    store.datasets.mkdir(parents=True)
    (store.datasets / "digits").symlink_to(digits_dataset.path.parent)
    write_dataset(store)
    config = get_recipe("digits").with_changes({"data": "digits@1"}, "test")
    run = finish_run(store, config, digits_dataset, "one")
    with pytest.raises(DataError, match="pets@1 has classes cat, dog; the run was trained on 0, 1"):
        evaluate_views(run, store, "test", "mirror", "pets@1")
