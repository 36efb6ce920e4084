"""setuptools as pip's build backend, and where the kernels find PyTorch.

pip builds in an environment of its own that has only what the backend asks for. The kernels are
compiled against PyTorch, a download of gigabytes: it is asked for only where the environment that
pip installs into has none that will do. A source archive needs neither.
"""

import os
import site
import sys
from importlib import metadata, util

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST_TORCH = (2, 11)


def find_torch() -> bool:
    """Whether a PyTorch that will do can be imported.

    In pip's environment the folders of the environment that pip installs into are hidden; they are
    appended to the path, after pip's own.
    """
    folders = site.getsitepackages()
    if sys.prefix == sys.base_prefix:  # no virtual environment
        folders.append(site.getusersitepackages())
    for folder in folders:
        if not util.find_spec("torch") and os.path.isdir(folder):
            site.addsitedir(folder)
    if not util.find_spec("torch"):
        return False
    major, minor = metadata.version("torch").split(".")[:2]
    return (int(major), int(minor)) >= OLDEST_TORCH


def get_requires_for_build_wheel(config_settings=None):
    if os.environ.get("MASKRCNN_BUILD") == "none":
        return []
    return ["ninja"] if find_torch() else ["ninja", "torch>={}.{}".format(*OLDEST_TORCH)]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings=None):
    return []


def build_sdist(sdist_directory, config_settings=None):
    os.environ["MASKRCNN_BUILD"] = "none"  # MANIFEST.in has the sources of the kernels
    return build_meta.build_sdist(sdist_directory, config_settings)
