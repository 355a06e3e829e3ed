"""Whether a classifier takes a data set's images and gives a number for each of its classes."""

import torch
from torch import Tensor

from cluster.dataset import DatasetMeta
from cluster.errors import ConfigError
from train.config import FileConfig, ModelConfig, OnnxConfig, TimmConfig, TorchvisionConfig
from train.models.classifier import Classifier
from train.models.file import blame
from train.models.zoo import smallest_image


def check_classifier(
    classifier: Classifier,
    model: ModelConfig,
    meta: DatasetMeta,
    *,
    training: bool,
    images: int = 2,
) -> None:
    """Pass random images through a classifier.

    Args:
        classifier: ends in evaluation mode.
        model: what it was built from.
        meta: of the data set.
        training: also pass them in training mode, which changes running averages.
        images: how many; 1 finds out whether a network can be trained on one at a time.

    Raises:
        ConfigError: it fails, or keeps more than tensors, or its output is not ``[n, classes]`` of
            finite floats, or it is logits and was said to be probabilities, or the other way round.
    """
    for key, value in classifier.net.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"{describe_model(model)} keeps {key}, which is no tensor; weights are tensors only"
            )
        if _overlaps(value):
            raise ConfigError(
                f"{describe_model(model)} keeps {key}, whose entries share memory; .clone() it"
            )
    if training and not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise ConfigError(f"{describe_model(model)} has no weights to train")
    generator = torch.Generator().manual_seed(0)
    shape = (images, *meta.image.shape)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for mode in (True, False) if training else (False,):
        classifier.train(mode)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                output = classifier.net((pixels - classifier.mean) / classifier.std)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a network raises what it likes
            raise ConfigError(_explain(error, model, meta)) from None
        _check_output(output, model, classifier, images, len(meta.class_names))


def _overlaps(tensor: Tensor) -> bool:
    """Whether it was expanded: workers could not be given such a tensor."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)


def describe_model(model: ModelConfig) -> str:
    """A network as ``--model`` names it."""
    if isinstance(model, TorchvisionConfig | TimmConfig):
        return f"{model.name}:{model.arch}"
    if isinstance(model, FileConfig):
        return f"{model.path.name}:{model.factory}"
    return model.path.name if isinstance(model, OnnxConfig) else model.name


def _check_output(
    output: object, model: ModelConfig, classifier: Classifier, images: int, classes: int
) -> None:
    name = describe_model(model)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"{name} gives {kind}; a tensor of floats [n, {classes}] is needed")
    if output.shape != (images, classes):
        raise ConfigError(
            f"{name} gives {list(output.shape)} for {images} images; the data set has {classes} "
            f"classes, so [{images}, {classes}] is needed"
        )
    if not output.isfinite().all():
        broken = (key for key, one in classifier.net.state_dict().items() if one.isnan().any())
        first = next(broken, None)
        raise ConfigError(
            f"{name} gives numbers that are not finite"
            + (f": its tensor {first} holds NaN" if first else " for random images")
        )
    # Two rows that are positive and sum to 1 by chance do not happen.
    sums = output.float().sum(1)
    likely = bool((output >= 0).all()) and bool((sums - 1).abs().max() < 1e-3)
    if likely and classifier.output == "logits":
        raise ConfigError(
            f"{name} gives probabilities (its outputs sum to 1); leave its softmax out, or say so: "
            "--output probabilities (model.output=probabilities)"
        )
    if not likely and classifier.output == "probabilities":
        raise ConfigError(f"{name} does not give probabilities: its outputs do not sum to 1")


def _explain(error: BaseException, model: ModelConfig, meta: DatasetMeta) -> str:
    channels, height, width = meta.image.shape
    what = f"{describe_model(model)} fails on images of {channels}x{height}x{width}"
    if isinstance(model, FileConfig):
        return f"{what}: {blame(error, model.path)}"
    said = " ".join(str(error).split())[:300]
    smallest = None
    if isinstance(model, TorchvisionConfig | TimmConfig):
        smallest = smallest_image(model)
    if smallest is not None and (height < smallest[0] or width < smallest[1]):
        return f"{what}: it takes {smallest[0]}x{smallest[1]} or larger ({said})"
    return f"{what}: {said}"
