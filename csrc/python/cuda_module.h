#ifndef STOPGRAD_PYTHON_CUDA_MODULE_H_
#define STOPGRAD_PYTHON_CUDA_MODULE_H_

#include <pybind11/pybind11.h>

namespace stopgrad {

// Defines the CUDA kernels, on arrays in a GPU's memory, in a module.
void DefineCuda(pybind11::module_& module);

}  // namespace stopgrad

#endif  // STOPGRAD_PYTHON_CUDA_MODULE_H_
