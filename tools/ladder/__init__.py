"""The parity ladder: op, module, stage, whole model, each compared with torchvision.

Every rung is fed with the reference's own inputs, so that the first one that fails is the culprit.
"""
