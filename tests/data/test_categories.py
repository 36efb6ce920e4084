"""Categories are classes by name, and differences are warnings."""

import pytest

from maskrcnn_scratch.data.categories import match_categories, warn_about_classes

CLASSES = {1: "cat", 2: "dog", 3: "cow"}


@pytest.mark.parametrize(
    ("categories", "labels"),
    [
        ({1: "cat", 2: "dog", 3: "cow"}, {1: 1, 2: 2, 3: 3}),
        ({7: "cow", 1: "dog", 2: "cat"}, {7: 3, 1: 2, 2: 1}),
        ({1: "cat", 3: "fox"}, {1: 1}),
        ({0: "animals", 1: "cat"}, {1: 1}),
        ({}, {}),
    ],
)
def test_by_name(categories, labels):
    assert match_categories(categories, CLASSES) == labels


def test_a_name_that_is_used_twice_is_matched_in_order():
    assert match_categories({4: "a", 2: "a", 9: "a"}, {1: "a", 5: "a"}) == {2: 1, 4: 5}


def test_ids_count_only_for_classes_that_no_name_has():
    ids = {1: 1, 2: 2, 3: 3}
    assert match_categories({1: "dog", 2: "pony", 3: "bull"}, CLASSES, ids) == {1: 2, 3: 3}
    assert match_categories({1: "a", 2: "b"}, {1: "1", 2: "2"}, {1: 1, 2: 2}) == {1: 1, 2: 2}


def test_differences_are_warnings():
    categories = {1: "cat", 2: "hound", 9: "fox"}
    with pytest.warns(UserWarning, match="val.json") as told:
        warn_about_classes("val.json", categories, {1: 1, 2: 2}, CLASSES, "the model")
    assert [str(warning.message) for warning in told] == [
        "val.json lacks 'cow', which the model has",
        "val.json has 'hound' (id 2), which is 'dog' in the model",
        "val.json has 'fox' (id 9), which the model does not have: its objects count as missed",
    ]
