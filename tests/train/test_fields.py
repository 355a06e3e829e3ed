"""The reference of the configuration's fields is whole, and the page that shows it is current."""

import pytest
from harness import ROOT

from cluster.errors import NotFoundError
from train.fields import find_sections, to_markdown


def test_the_page_is_current() -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert page == to_markdown(find_sections()) + "\n", (
        "python -m train fields --markdown > docs/configuration.md"
    )


def test_every_kind_of_a_part_has_its_fields() -> None:
    kinds = {one.kind: {row.name: row for row in one.rows} for one in find_sections("optim")}
    assert set(kinds) == {"gd", "sgd", "adam", "adamw", "rmsprop", "adagrad", "muon"}
    momentum = kinds["sgd"]["momentum"]
    assert (momentum.values, momentum.default) == ("number, >= 0, < 1", "0.9")
    assert (kinds["adam"]["betas"].values, kinds["adam"]["betas"].default) == (
        "list",
        "[0.9, 0.999]",
    )
    assert all("weight_decay" in kind for kind in kinds.values())


def test_parts_within_parts_are_found() -> None:
    (erasing,) = find_sections("augment.erasing")
    assert {row.name for row in erasing.rows} == {"p", "min_area", "max_area", "fill"}
    (whole,) = [one for one in find_sections() if not one.part]
    rows = {row.name: row for row in whole.rows}
    assert rows["ema"].values == "table, or none"
    assert rows["pretrained"].values == "text, or none"
    assert rows["recipe"].default == "required"
    (muon,) = find_sections("optim.muon")
    assert muon.kind == "muon"


def test_an_unknown_part_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"no part 'optimizer' .* augment, augment.color"):
        find_sections("optimizer")
