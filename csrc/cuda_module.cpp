// The Python module of the CUDA kernels; importing it loads them. The schemas are in schema.cpp, so
// the module `_cpu` comes first.
#include <Python.h>

PyMODINIT_FUNC PyInit__cuda(void) {
  static PyModuleDef module = {};
  module.m_base = PyModuleDef_HEAD_INIT;
  module.m_name = "_cuda";
  return PyModule_Create(&module);
}
