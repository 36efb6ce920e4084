"""Which category of a data set is which class of a model: by name, since ids differ by file."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping


def match_categories(
    categories: Mapping[int, str],
    class_names: Mapping[int, str],
    category_labels: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """The label of each category whose name is a class; other categories are not in the result.

    If a name is used more than once, categories by id and classes by label are paired in order.

    Args:
        categories: names by category id, of a data set.
        class_names: names by label, of a model or training set.
        category_labels: labels by category id. A category without a class of its name gets the
            label of its id, if no other category has that label. For weights without names.
    """
    free: dict[str, list[int]] = {}
    for label in sorted(class_names):
        free.setdefault(class_names[label], []).append(label)
    labels = {}
    for id in sorted(categories):
        if free.get(categories[id]):
            labels[id] = free[categories[id]].pop(0)
    taken = set(labels.values())
    for id, label in (category_labels or {}).items():
        if id in categories and id not in labels and label not in taken:
            labels[id] = label
    return labels


def warn_about_classes(
    file: object,
    categories: Mapping[int, str],
    labels: Mapping[int, int],
    class_names: Mapping[int, str],
    source: str,
    used: Collection[int] | None = None,
) -> None:
    """Warns if the categories of ``file`` are not the classes of ``source``.

    Args:
        file: the annotation file, for the message.
        categories: its names by category id.
        labels: its labels by category id.
        class_names: names by label, of ``source``.
        source: such as "the model".
        used: ids of the categories that have annotations; by default all.
    """
    known = set(labels.values())
    missing = [repr(name) for label, name in class_names.items() if label not in known]
    renamed, unknown = [], []
    for id, name in categories.items():
        if id not in labels and (used is None or id in used):
            unknown.append(f"{name!r} (id {id})")
        elif id in labels and class_names[labels[id]] not in (name, str(labels[id])):
            renamed.append(f"{name!r} (id {id}), which is {class_names[labels[id]]!r} in {source}")
    for text, found in (
        (f"lacks {{}}, which {source} has", missing),
        ("has {}", renamed),
        (f"has {{}}, which {source} does not have: its objects count as missed", unknown),
    ):
        if found:
            more = f" and {len(found) - 3} more" * (len(found) > 3)
            warnings.warn(f"{file} {text.format(', '.join(found[:3]) + more)}", stacklevel=3)
