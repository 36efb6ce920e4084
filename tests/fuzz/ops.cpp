// Calls the ops of torch.ops.maskrcnn_scratch with arguments made from libFuzzer's bytes.
//
// Arguments start as ones that fit together, so that kernels run; then some are replaced by others
// of the same type, so that checks run too. An op that ops_arguments.h does not list gets arbitrary
// arguments of its schema's types (ops_values.h). A refusal is an exception; anything else that
// goes wrong is found by AddressSanitizer and UBSan, with which csrc is compiled.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "ops_arguments.h"
#include "ops_values.h"

namespace {

using c10::IValue;
using fuzz::kFitting;

std::vector<c10::OperatorHandle> ops_of_this_project() {
  std::vector<c10::OperatorHandle> ops;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.starts_with("maskrcnn_scratch::")) {
      ops.push_back(*c10::Dispatcher::singleton().findSchema(name));
    }
  }
  std::sort(ops.begin(), ops.end(), [](const auto& a, const auto& b) {
    return a.operator_name().name < b.operator_name().name;
  });
  TORCH_CHECK(ops.size() >= kFitting.size(), "ops are missing");
  return ops;
}

// Reads every element, so that a result larger than its memory is found.
void read_all(const IValue& value) {
  if (value.isTensor()) {
    const at::Tensor tensor = value.toTensor();
    if (tensor.numel() < 100'000) (void)tensor.contiguous().view(-1).to(at::kDouble).sum();
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) read_all(tensor);
  }
}

}  // namespace

// csrc/schema.cpp is a Python module too. Nothing imports it here, and there is no Python to link.
extern "C" void* PyModule_Create2(void*, int) {
  std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t length) {
  static const std::vector<c10::OperatorHandle> ops = [] {
    at::set_num_threads(1);
    return ops_of_this_project();
  }();
  fuzz::Bytes bytes(data, length);
  const c10::OperatorHandle& op = ops[bytes.ConsumeIntegralInRange<size_t>(0, ops.size() - 1)];
  const auto& schema = op.schema().arguments();
  const auto fitting =
      kFitting.find(op.operator_name().name.substr(sizeof("maskrcnn_scratch::") - 1));
  try {
    fuzz::Arguments arguments(schema.size());
    // The first bytes say which arguments do not fit.
    std::vector<bool> replaced(schema.size(), fitting == kFitting.end());
    for (int count = bytes.ConsumeIntegralInRange(0, 5) - 2; count > 0; --count) {
      replaced[bytes.ConsumeIntegralInRange<size_t>(0, schema.size() - 1)] = true;
    }
    if (fitting != kFitting.end()) arguments = fitting->second(bytes);
    if (arguments.size() != schema.size()) {
      std::cerr << op.operator_name().name << ": ops_arguments.h does not know its arguments\n";
      std::abort();
    }
    for (size_t i = 0; i < schema.size(); ++i) {
      if (replaced[i]) arguments[i] = fuzz::any_argument(bytes, schema[i]);
    }
    op.callBoxed(arguments);
    for (const IValue& result : arguments) read_all(result);
  } catch (const std::exception&) {  // refused
  }
  return 0;
}
