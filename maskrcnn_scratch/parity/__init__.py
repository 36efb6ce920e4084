"""Parity with torchvision: ops, modules, stages, the whole model and its losses, compared.

Needs torchvision and scikit-image, which nothing else in the package imports.
"""
