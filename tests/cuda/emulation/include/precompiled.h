// What most kernels include: build.py compiles it once per set of flags. Included before everything
// else.
#pragma once

#include "registration.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>
