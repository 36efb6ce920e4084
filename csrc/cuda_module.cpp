// The Python module of the CUDA kernels. Importing it registers them. The schemas are in the module
// `_cpu`, which must be imported first.
#include <Python.h>

PyMODINIT_FUNC PyInit__cuda(void) {
  static PyModuleDef module = {};
  module.m_base = PyModuleDef_HEAD_INIT;
  module.m_name = "_cuda";
  return PyModule_Create(&module);
}
