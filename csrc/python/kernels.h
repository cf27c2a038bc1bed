#ifndef STOPGRAD_PYTHON_KERNELS_H_
#define STOPGRAD_PYTHON_KERNELS_H_

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensors.h"
#include "python/arguments.h"

namespace stopgrad {

// Defines `matmul` and `matmul_gradient` in a module, for the arrays of a backend:
//   Backend(const py::kwargs& settings)        what else a call may say
//   Input Read(name, const py::object& array)  a dense array, which the backend holds
//   py::object New(const Shape&, bool poison, void** data)   of the dtype of what was read first
//   Status Forward(const ForwardCall&, const ForwardTensors&)
//   Status Backward(const GradientCall&, const BackwardTensors&)
// Poisoned memory shows an element that a kernel forgot to write: all bits set is a NaN.
template <typename Backend>
class Kernels {
 public:
  static py::object MatMul(const py::object& a_array, const py::object& b_array,
                           const py::object& bias_array, const std::string& layout_a,
                           const std::string& layout_b, const std::string& activation,
                           bool return_preactivation, bool poison, const py::kwargs& settings) {
    Backend backend(settings);
    const Input a = Read(backend, "a", a_array), b = Read(backend, "b", b_array);
    const Input bias = Read(backend, "bias", bias_array);
    const ForwardCall call = CheckForward(a, b, bias, {layout_a, layout_b, activation});
    ForwardTensors tensors{a.data, b.data, bias.data};
    const Shape shape = call.problem.ShapeOfY();
    py::object y = backend.New(shape, poison, &tensors.y), z;
    if (return_preactivation) z = backend.New(shape, poison, &tensors.z);
    Status status;
    {
      py::gil_scoped_release release;
      status = backend.Forward(call, tensors);
    }
    ThrowIfError(status);
    return return_preactivation ? py::make_tuple(y, z) : y;
  }

  static py::dict MatMulGradient(
      const py::object& dy_array, const py::object& a_array, const py::object& b_array,
      const py::object& saved_array, const std::vector<std::string>& needed,
      const std::string& layout_a, const std::string& layout_b, const std::string& activation,
      const std::optional<Shape>& a_shape, const std::optional<Shape>& b_shape,
      const std::map<std::string, double>& scales, const py::object& rows, const py::dict& regions,
      const std::vector<std::string>& compact, bool poison, const py::kwargs& settings) {
    Backend backend(settings);
    const Input dy = Read(backend, "dy", dy_array), a = Read(backend, "a", a_array);
    const Input b = Read(backend, "b", b_array), saved = Read(backend, "saved", saved_array);
    const GradientCall call =
        CheckGradient(dy, a, b, saved, {layout_a, layout_b, activation},
                      {needed, a_shape, b_shape, scales, rows, regions, compact});
    py::dict results;
    const auto result = [&](bool need, const char* name, const Shape& shape, void** data) {
      if (need) results[name] = backend.New(shape, poison, data);
    };
    BackwardTensors tensors{dy.data, a.data, b.data, saved.data};
    result(call.needs.a, "a", call.shape_a, &tensors.da);
    result(call.needs.b, "b", call.shape_b, &tensors.db);
    result(call.needs.bias, "bias", {call.cols}, &tensors.dbias);
    result(call.needs.z, "z", dy.shape, &tensors.dz);
    Status status;
    {
      py::gil_scoped_release release;
      status = backend.Backward(call, tensors);
    }
    ThrowIfError(status);
    return results;
  }

  static void Define(py::module_& module) {
    using namespace py::literals;
    module.def("matmul", MatMul, "a"_a, "b"_a, "bias"_a = py::none(), py::kw_only(),
               "layout_a"_a = "normal", "layout_b"_a = "normal", "activation"_a = "linear",
               "return_preactivation"_a = false, "poison"_a = false,
               "y = f(op(a) op(b) + bias), with broadcasting batch dimensions.");
    module.def("matmul_gradient", MatMulGradient, "dy"_a, "a"_a = py::none(), "b"_a = py::none(),
               "saved"_a = py::none(), py::kw_only(), "needed"_a, "layout_a"_a = "normal",
               "layout_b"_a = "normal", "activation"_a = "linear", "a_shape"_a = py::none(),
               "b_shape"_a = py::none(), "scales"_a = std::map<std::string, double>(),
               "rows"_a = py::none(), "regions"_a = py::dict(),
               "compact"_a = std::vector<std::string>(), "poison"_a = false,
               "The gradients named in `needed`, as a dict.");
  }

 private:
  static Input Read(Backend& backend, const char* name, const py::object& array) {
    Input input;
    if (!array.is_none()) input = backend.Read(name, array);
    input.name = name;
    return input;
  }
};

// Takes a setting of a backend out of what was passed.
template <typename T>
T TakeSetting(py::dict& settings, const char* name, T otherwise) {
  if (!settings.contains(name)) return otherwise;
  T value = py::cast<T>(settings[name]);
  settings.attr("pop")(name);
  return value;
}
inline void CheckNoSettingsLeft(const py::dict& settings) {
  for (const auto& [name, value] : settings) {
    throw py::type_error("unexpected keyword argument `" + py::cast<std::string>(name) + "`");
  }
}

}  // namespace stopgrad

#endif  // STOPGRAD_PYTHON_KERNELS_H_
