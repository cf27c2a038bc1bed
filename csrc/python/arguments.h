#ifndef STOPGRAD_PYTHON_ARGUMENTS_H_
#define STOPGRAD_PYTHON_ARGUMENTS_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/activation.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/status.h"

namespace stopgrad {

namespace py = pybind11;

// What Python passes to the kernels, checked. All of these throw the exception that Python gets.

void ThrowIfError(const Status& status);

DType ParseDType(const char* argument, const std::string& name);
Activation ParseActivation(const std::string& name, DType dtype);
Layout ParseLayout(const char* argument, const std::string& name);
GradientNeeds ParseNeeded(const std::vector<std::string>& names);
GradientScales ParseScales(const std::map<std::string, double>& values);
// A boolean or floating array in the host's memory that broadcasts against the rows of y.
RowWeights ParseRows(const py::object& rows, const Shape& y);
// From the names of axes to (begin, end, step), end None for all, or an array of indices. Operands
// that are not needed may have no shape.
Regions ParseRegions(const py::dict& parts, GradientNeeds needs, const Shape& a, const Shape& b,
                     int64_t bias);

// An array, wherever it is; without data it is absent.
struct Input {
  const char* name;
  bool given = false;
  const void* data = nullptr;
  Shape shape;
  DType dtype = DType::kFloat;

  explicit operator bool() const { return given; }
  const Shape* shape_if_given() const { return given ? &shape : nullptr; }
};

struct ProductOptions {
  std::string layout_a;
  std::string layout_b;
  std::string activation;
};

struct GradientOptions {
  std::vector<std::string> needed;
  std::optional<Shape> a_shape;
  std::optional<Shape> b_shape;
  std::map<std::string, double> scales;
  py::object rows;
  py::dict regions;
  std::vector<std::string> compact;
};

struct ForwardCall {
  MatMulProblem problem;
  Activation activation;
};
ForwardCall CheckForward(const Input& a, const Input& b, const Input& bias,
                         const ProductOptions& options);

struct GradientCall {
  DType dtype;
  int64_t rows;
  int64_t cols;
  bool has_products;
  MatMulProblem problem;
  Activation activation;
  GradientPolicy policy;
  GradientNeeds needs;
  Shape shape_a;  // of the gradients
  Shape shape_b;

  const MatMulProblem* problem_if_any() const { return has_products ? &problem : nullptr; }
};
GradientCall CheckGradient(const Input& dy, const Input& a, const Input& b, const Input& saved,
                           const ProductOptions& product, const GradientOptions& options);

}  // namespace stopgrad

#endif  // STOPGRAD_PYTHON_ARGUMENTS_H_
