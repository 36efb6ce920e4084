"""Parity with torchvision: ops, modules, stages, the complete model and its losses are compared.

Needs torchvision and scikit-image (the extra ``parity``).
"""
