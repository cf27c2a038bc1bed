// stopgrad_op._kernels.cuda on an emulated GPU, and what tests set and read of that.
#include <pybind11/pybind11.h>

#include "hooks.h"
#include "python/cuda_module.h"
#include "python/stats.h"

PYBIND11_MODULE(emulated_cuda, module) {
  namespace py = pybind11;
  using namespace stopgrad;
  using cuda::emulation::Hooks;
  DefineCuda(module);
  py::class_<Hooks>(module, "Hooks")
      .def_readwrite("compute_capability", &Hooks::compute_capability)
      .def_readwrite("capturing", &Hooks::capturing)
      .def_readwrite("others_capture", &Hooks::others_capture)
      .def_readwrite("failing_call", &Hooks::failing_call)
      .def_readwrite("calls_before_failing", &Hooks::calls_before_failing)
      .def_readwrite("error", &Hooks::error)
      .def_readwrite("launches", &Hooks::launches)
      .def_readwrite("synchronizations", &Hooks::synchronizations)
      .def_readwrite("locked_blocks", &Hooks::locked_blocks)
      .def_readwrite("bytes_in_use", &Hooks::bytes_in_use)
      .def_readwrite("most_bytes_in_use", &Hooks::most_bytes_in_use)
      .def_readwrite("writes_outside", &Hooks::writes_outside);
  module.attr("hooks") = py::cast(&cuda::emulation::hooks, py::return_value_policy::reference);
  module.def("kernel_stats", KernelStats);
  module.def("reset_kernel_stats", ResetStats);
}
