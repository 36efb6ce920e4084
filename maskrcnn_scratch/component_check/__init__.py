"""Checks whether your part does what the model relies on.

``maskrcnn check my.py:Part --as backbone`` prints one line per check. In Python:

    from maskrcnn_scratch.component_check.run import check_part
    results = list(check_part(MyBackbone, "backbone"))

One file per kind of part has the checks of the part alone; ``in_model`` those of a small model with
the part in it; ``capabilities`` tries compilation, export and the like. ``run`` has the order.
"""
