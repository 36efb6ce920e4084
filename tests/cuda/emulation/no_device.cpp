// There is no device to guard, nor a stream, when kernels are emulated. These take the place of
// torch's functions in the library that they are linked into (with -Bsymbolic).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
