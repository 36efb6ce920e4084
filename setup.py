"""Builds the extension. Everything else about the package is in pyproject.toml.

MASKRCNN_BUILD=auto (default): CPU kernels, and CUDA kernels where nvcc and a CUDA torch are there;
               nothing on Windows, whose compiler takes other options.
              =cpu | cuda: CPU only, or both; what cannot be built is an error.
              =none: nothing; the reference implementations in PyTorch run instead.
TORCH_CUDA_ARCH_LIST: GPUs to compile for (default: 8.0 and 9.0, and PTX for later ones).
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

from build_backend import OLDEST_TORCH, find_torch

COMMON_FLAGS = [
    "-O3",
    "-std=c++20",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # torch 2.11, the oldest that can load the binary
]
CPU_FLAGS = [
    *COMMON_FLAGS,
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # multiply and add round separately, as in PyTorch and on CUDA
    "-fno-math-errno",
    "-fno-trapping-math",  # neither changes a value; both allow loops to be vectorised
    "-Wall",
    "-Wextra",
]
LINK_FLAGS = ["-Wl,-s"] if sys.platform == "linux" else []  # no symbols for debuggers
# One binary for every Python, except those without a GIL: they have no limited API.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
CUDA_FLAGS = [*COMMON_FLAGS, "-fmad=false", "-DUSE_CUDA", "-lineinfo"]


def sources(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc").glob(pattern))


def find_cuda_home() -> None:
    """Sets CUDA_HOME to nvcc's toolkit; nvcc on the path can be a script in another folder."""
    nvcc = shutil.which("nvcc")
    if nvcc and not os.environ.get("CUDA_HOME") and not os.environ.get("CUDA_PATH"):
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        trace = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        if top := re.search(r"^#\$ TOP=(.+)$", trace, re.MULTILINE):
            os.environ["CUDA_HOME"] = str(Path(top[1].strip()).resolve())


def check_tools() -> None:
    """Stops with one line if PyTorch or the compiler is missing."""
    otherwise = "or install without kernels, with MASKRCNN_BUILD=none, which is slow"
    if not find_torch():
        oldest = "{}.{}".format(*OLDEST_TORCH)
        raise SystemExit(f"the kernels need PyTorch {oldest} or newer: install it, {otherwise}")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if not shutil.which(compiler):
        raise SystemExit(
            f"the kernels need a C++ compiler, and there is no {compiler}: "
            f"install g++ 11 or clang++ 14 or newer, name one with CXX, {otherwise}"
        )


def build_arguments() -> dict[str, object]:
    choice = os.environ.get("MASKRCNN_BUILD", "auto")
    if choice not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"MASKRCNN_BUILD must be auto, cpu, cuda or none, not {choice!r}")
    if choice == "auto" and sys.platform == "win32":
        choice = "none"
    if choice == "none":
        print("maskrcnn_scratch: building no kernels (MASKRCNN_BUILD=none)")
        return {}

    check_tools()
    find_cuda_home()
    import torch
    from torch.utils import cpp_extension

    cuda_sources = sources("*/*_cuda.cu")
    missing = [
        what
        for what, found in {
            "a torch built with CUDA": torch.version.cuda,
            "nvcc (set CUDA_HOME)": cpp_extension.CUDA_HOME,
            "csrc/*/*_cuda.cu": cuda_sources,
        }.items()
        if not found
    ]
    if choice == "cuda" and missing:
        raise SystemExit(f"MASKRCNN_BUILD=cuda needs {', '.join(missing)}")
    with_cuda = choice != "cpu" and not missing
    print(f"maskrcnn_scratch: building {'CPU and CUDA' if with_cuda else 'CPU'} kernels ({choice})")

    extensions = [
        cpp_extension.CppExtension(
            "maskrcnn_scratch._cpu",
            ["csrc/schema.cpp", *sources("*/*_cpu.cpp")],
            extra_compile_args=CPU_FLAGS,
            extra_link_args=LINK_FLAGS,
            py_limited_api=LIMITED_API,
        )
    ]
    if with_cuda:
        older = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        own = "{}.{};".format(*torch.cuda.get_device_capability()) if older else ""
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{own}8.0;9.0+PTX")
        extensions.append(
            cpp_extension.CUDAExtension(
                "maskrcnn_scratch._cuda",
                ["csrc/cuda_module.cpp", *cuda_sources],
                extra_compile_args={"cxx": CPU_FLAGS, "nvcc": CUDA_FLAGS},
                extra_link_args=LINK_FLAGS,
                py_limited_api=LIMITED_API,
            )
        )
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {},
    }


setup(**build_arguments())
