#include "python/arguments.h"

#include <pybind11/numpy.h>

#include <initializer_list>
#include <stdexcept>
#include <tuple>

#include "core/selection.h"

namespace stopgrad {

void ThrowIfError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
      throw py::value_error(status.message());
    case StatusCode::kResourceExhausted:
      PyErr_SetString(PyExc_MemoryError, status.message().c_str());
      throw py::error_already_set();
    case StatusCode::kUnavailable:
    case StatusCode::kInternal:
      throw std::runtime_error(status.message());
  }
}

DType ParseDType(const char* argument, const std::string& name) {
  for (int i = 0; i < kNumDTypes; ++i) {
    if (name == kDTypeNames[i]) return static_cast<DType>(i);
  }
  throw py::type_error(std::string("`") + argument + "` has dtype " + name +
                       "; due is one of float32, float64, float16, bfloat16, complex64, "
                       "complex128, int32, int64");
}

Activation ParseActivation(const std::string& name, DType dtype) {
  Activation activation;
  if (!FindActivation(name, &activation)) {
    throw py::value_error("`activation` \"" + name + "\" is unknown");
  }
  if (activation != Activation::kLinear && !HasActivations(dtype)) {
    throw py::value_error("`activation` \"" + name +
                          "\" needs a real floating dtype; the arrays are " + NameOf(dtype));
  }
  return activation;
}

Layout ParseLayout(const char* argument, const std::string& name) {
  Layout layout;
  if (!FindLayout(name, &layout)) {
    throw py::value_error(std::string("`") + argument + "` is \"" + name +
                          "\"; due is \"normal\", \"transpose\" or \"adjoint\"");
  }
  return layout;
}

GradientNeeds ParseNeeded(const std::vector<std::string>& names) {
  GradientNeeds needs;
  for (const std::string& name : names) {
    bool* const need = FindNeed(name, &needs);
    if (need == nullptr) {
      throw py::value_error("`needed` has \"" + name +
                            "\"; due are \"a\", \"b\", \"bias\" and \"z\"");
    }
    *need = true;
  }
  return needs;
}

GradientScales ParseScales(const std::map<std::string, double>& values) {
  GradientScales scales;
  for (const auto& [name, value] : values) {
    double* const scale = FindScale(name, &scales);
    if (scale == nullptr) {
      throw py::value_error("`scales` has \"" + name + "\"; due are \"a\", \"b\" and \"bias\"");
    }
    *scale = value;
  }
  return scales;
}

RowWeights ParseRows(const py::object& rows, const Shape& y) {
  RowWeights weights;
  if (rows.is_none()) return weights;
  const auto make = [&](const auto& array) {
    const Shape shape(array.shape(), array.shape() + array.ndim());
    ThrowIfError(MakeRowWeights(array.data(), shape, y, &weights));
    return weights;
  };
  if (py::isinstance<py::array_t<bool>>(rows)) {
    return make(py::cast<py::array_t<bool, py::array::c_style>>(rows));
  }
  return make(py::cast<py::array_t<double, py::array::c_style | py::array::forcecast>>(rows));
}

Regions ParseRegions(const py::dict& parts, GradientNeeds needs, const Shape& a, const Shape& b,
                     int64_t bias) {
  Regions regions;
  for (const auto& [key, value] : parts) {
    const auto name = py::cast<std::string>(key);
    RegionPart part{};
    part.axis = FindRegionAxis(name);
    if (part.axis == nullptr) {
      throw py::value_error("`regions` has \"" + name +
                            "\"; due are a_rows, a_columns, b_rows, b_columns and bias");
    }
    if (!*FindNeed(part.axis->operand, &needs)) continue;
    const int64_t extent = part.axis->Extent(a, b, bias);
    py::array_t<int64_t, py::array::c_style> indices;
    if (py::isinstance<py::tuple>(value)) {
      const auto [begin, end, step] =
          py::cast<std::tuple<int64_t, std::optional<int64_t>, int64_t>>(value);
      part.slice = {begin, end.value_or(Slice::kToTheEnd), step};
    } else {
      indices = py::cast<py::array_t<int64_t, py::array::c_style>>(value);
      part.by_index = true;
      part.indices = indices.data();
      part.num_indices = indices.size();
    }
    ThrowIfError(Select(part, extent, &regions));
  }
  return regions;
}

namespace {

void CheckSameDType(DType dtype, std::initializer_list<const Input*> others) {
  for (const Input* other : others) {
    if (!*other || other->dtype == dtype) continue;
    throw py::type_error(std::string("`") + other->name + "` has dtype " + NameOf(other->dtype) +
                         "; due is " + NameOf(dtype) + ", as the other arrays");
  }
}

}  // namespace

ForwardCall CheckForward(const Input& a, const Input& b, const Input& bias,
                         const ProductOptions& options) {
  CheckSameDType(a.dtype, {&b, &bias});
  ForwardCall call;
  call.activation = ParseActivation(options.activation, a.dtype);
  ThrowIfError(MakeMatMulProblem(a.dtype, ParseLayout("layout_a", options.layout_a),
                                 ParseLayout("layout_b", options.layout_b), a.shape, b.shape,
                                 &call.problem));
  if (bias) ThrowIfError(CheckBias(call.problem, bias.shape));
  return call;
}

GradientCall CheckGradient(const Input& dy, const Input& a, const Input& b, const Input& saved,
                           const ProductOptions& product, const GradientOptions& options) {
  GradientCall call;
  call.dtype = dy.dtype;
  if (!HasGradients(dy.dtype)) {
    throw py::type_error("`dy` is an integer array; integers have no gradient");
  }
  CheckSameDType(dy.dtype, {&a, &b, &saved});
  call.activation = ParseActivation(product.activation, dy.dtype);
  call.needs = ParseNeeded(options.needed);
  call.policy.scales = ParseScales(options.scales);
  if (call.needs.a && !b) throw py::value_error("the gradient of `a` needs `b`");
  if (call.needs.b && !a) throw py::value_error("the gradient of `b` needs `a`");
  if (SavedFor(call.activation) != Saved::kNothing && (!saved || saved.shape != dy.shape)) {
    throw py::value_error(
        "`saved` must have the shape of `dy`, " + ToString(dy.shape) +
        (saved ? "; its shape is " + ToString(saved.shape) : std::string(", and is missing")));
  }
  if (dy.shape.size() < 2) {
    throw py::value_error("`dy` must have rank 2 or more; its shape is " + ToString(dy.shape));
  }
  call.has_products = call.needs.a || call.needs.b;
  if (call.has_products) {
    const Shape* shape_a = a ? &a.shape : (options.a_shape ? &*options.a_shape : nullptr);
    const Shape* shape_b = b ? &b.shape : (options.b_shape ? &*options.b_shape : nullptr);
    ThrowIfError(MakeGradientProblem(dy.dtype, ParseLayout("layout_a", product.layout_a),
                                     ParseLayout("layout_b", product.layout_b), dy.shape, shape_a,
                                     shape_b, &call.problem));
  }
  call.cols = dy.shape.back();
  call.rows = call.cols == 0 ? 0 : NumElements(dy.shape) / call.cols;
  call.policy.rows = ParseRows(options.rows, dy.shape);
  call.policy.regions = ParseRegions(options.regions, call.needs, call.problem.shape_a,
                                     call.problem.shape_b, call.cols);
  call.shape_a = call.problem.shape_a;
  call.shape_b = call.problem.shape_b;
  for (const std::string& name : options.compact) {
    Shape& shape = name == "a" ? call.shape_a : call.shape_b;
    if ((name != "a" && name != "b") || shape.size() != 2) {
      throw py::value_error("`compact` has \"" + name + "\"; due are \"a\" and \"b\", if matrices");
    }
    const Regions& regions = call.policy.regions;
    (name == "a" ? call.policy.compact_a : call.policy.compact_b) = true;
    shape =
        ShapeOfGradient(shape, /*is_compact=*/true, name == "a" ? regions.a_rows : regions.b_rows);
  }
  return call;
}

}  // namespace stopgrad
