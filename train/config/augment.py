"""What is done to training images."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.config import Frozen


class ErasingConfig(Frozen):
    """Random erasing (Zhong et al. 2020, algorithm 1): a box of random size, place and pixels."""

    p: float = Field(default=0.5, gt=0, le=1)
    """Share of the images."""
    min_area: float = Field(default=0.02, gt=0, lt=1)
    max_area: float = Field(default=0.4, gt=0, lt=1)
    """Shares of an image's area."""
    fill: Literal["noise", "black"] = "noise"

    @model_validator(mode="after")
    def _areas_are_in_order(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError(
                f"min_area {self.min_area:g} is larger than max_area {self.max_area:g}"
            )
        return self


class ColorConfig(Frozen):
    """Colour jitter: each factor is uniform in [1 - x, 1 + x], the hue's turn in [-x, x]."""

    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Of colour images only."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """In turns of the colour circle; of colour images only."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("set brightness, contrast, saturation or hue above 0")
        return self


class RandAugmentConfig(Frozen):
    """RandAugment (Cubuk et al. 2020): some operations, drawn anew for each image."""

    ops: int = Field(default=2, ge=1, le=8)
    magnitude: int = Field(default=9, ge=0, le=30)
    """Of 30, on the paper's scale."""


class AugmentConfig(Frozen):
    """Changes to training images, in this order but for the crop, which comes first; each is a
    function of (seed, epoch, sample) alone."""

    flip: bool | Literal["alternating"] = False
    """Mirror half of the images left to right. ``alternating`` draws in the first epoch which half,
    and mirrors the other half in every second one (Jordan 2024, section 3.6)."""
    random_resized_crop: float | None = Field(default=None, gt=0, le=1)
    """Train on a part of each image, stretched to the whole: this share of its area or more, at an
    aspect ratio of 3/4 to 4/3. 0.35 is a good beginning for photographs, none for small images."""
    translate: int = Field(default=0, ge=0, le=64)
    """Shift by up to this many pixels each way (pad and crop)."""
    padding: Literal["black", "reflect"] = "black"
    """What comes in at the edges where ``translate`` shifts an image."""
    rand_augment: RandAugmentConfig | None = None
    color: ColorConfig | None = None
    erasing: ErasingConfig | None = None
    cutout: int = Field(default=0, ge=0, le=256)
    """Blacken a square of this side at a random place (DeVries and Taylor 2017)."""
    mixup: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Blend each image, and its label, with those of any other training image; the share is drawn
    from Beta(mixup, mixup) (Zhang et al. 2018), in 256ths. 0 is off."""
    cutmix: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Paste a box of any other training image into each, and mix the labels by area; the share is
    drawn from Beta(cutmix, cutmix) (Yun et al. 2019). 0 is off. With both, half of the images take
    each."""
