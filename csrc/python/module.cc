// stopgrad_op._kernels: the CPU kernels on NumPy arrays, the counters and what was built.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "core/activation.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/selection.h"
#include "core/stats.h"
#include "cpu/fused_matmul.h"
#include "cpu/targets.h"

namespace py = pybind11;

namespace stopgrad {
namespace {

void ThrowIfError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
      throw py::value_error(status.message());
    case StatusCode::kResourceExhausted:
      PyErr_SetString(PyExc_MemoryError, status.message().c_str());
      throw py::error_already_set();
    case StatusCode::kInternal:
      throw std::runtime_error(status.message());
  }
}

// A thread for every task: enough to test that results do not depend on them.
class ThreadsHost : public Host {
 public:
  explicit ThreadsHost(int threads) : threads_(threads) {}
  ~ThreadsHost() override {
    for (std::thread& thread : others_) thread.join();
  }

  int threads() const override { return threads_; }

  void Schedule(std::function<void()> task) override { others_.emplace_back(std::move(task)); }

  void* Allocate(size_t bytes) override {
    // aligned_alloc wants a multiple of the alignment.
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    blocks_.emplace_back(memory, std::free);
    return memory;
  }

 private:
  int threads_;
  std::vector<std::thread> others_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> blocks_;
};

constexpr const char* kDTypeNames[] = {"float32",   "float64",    "float16", "bfloat16",
                                       "complex64", "complex128", "int32",   "int64"};

DType DTypeOf(const char* argument, const py::array& array) {
  const auto name = py::cast<std::string>(array.dtype().attr("name"));
  for (int i = 0; i < kNumDTypes; ++i) {
    if (name == kDTypeNames[i]) return static_cast<DType>(i);
  }
  throw py::type_error(std::string("`") + argument + "` has dtype " + name +
                       "; due is one of float32, float64, float16, bfloat16, complex64, "
                       "complex128, int32, int64");
}

// The array's dtype in this machine's byte order.
py::dtype NativeDType(const py::array& array) {
  return py::cast<py::dtype>(array.dtype().attr("newbyteorder")("="));
}

Shape ShapeOf(const py::array& array) { return Shape(array.shape(), array.shape() + array.ndim()); }

// A dense array, checked against the dtype of the first one.
class Argument {
 public:
  Argument(const char* name, const std::optional<py::array>& array,
           const std::optional<DType>& dtype) {
    if (!array) return;
    array_ = py::cast<py::array>(
        py::module_::import("numpy").attr("ascontiguousarray")(*array, NativeDType(*array)));
    // ascontiguousarray makes a vector of a scalar.
    shape_ = ShapeOf(*array);
    const DType own = DTypeOf(name, *array_);
    if (dtype && own != *dtype) {
      throw py::type_error(std::string("`") + name + "` has dtype " +
                           kDTypeNames[static_cast<int>(own)] + "; due is " +
                           kDTypeNames[static_cast<int>(*dtype)] + ", as the other arrays");
    }
  }
  const void* data() const { return array_ ? array_->data() : nullptr; }
  const Shape* shape() const { return array_ ? &shape_ : nullptr; }
  explicit operator bool() const { return array_.has_value(); }

 private:
  std::optional<py::array> array_;
  Shape shape_;
};

// Poisoned memory shows an element that a kernel forgot to write: all bits set is a NaN.
py::array NewArray(const py::dtype& dtype, const Shape& shape, bool poison) {
  py::array array(dtype, shape);
  if (poison && array.nbytes() > 0) std::memset(array.mutable_data(), 0xff, array.nbytes());
  return array;
}

Activation ParseActivation(const std::string& name, DType dtype) {
  Activation activation;
  if (!FindActivation(name, &activation)) {
    throw py::value_error("`activation` \"" + name + "\" is unknown");
  }
  if (activation != Activation::kLinear && !HasActivations(dtype)) {
    throw py::value_error("`activation` \"" + name +
                          "\" needs a real floating dtype; the arrays are " +
                          kDTypeNames[static_cast<int>(dtype)]);
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

ThreadsHost MakeHost(int threads) {
  if (threads < 1 || threads > 256) {
    throw py::value_error("`threads` must be from 1 to 256 and is " + std::to_string(threads));
  }
  return ThreadsHost(threads);
}

py::object MatMul(const py::array& a_array, const py::array& b_array,
                  const std::optional<py::array>& bias_array, const std::string& layout_a,
                  const std::string& layout_b, const std::string& activation_name,
                  bool return_preactivation, int threads, bool poison) {
  const DType dtype = DTypeOf("a", a_array);
  const Argument a("a", a_array, dtype);
  const Argument b("b", b_array, dtype);
  const Argument bias("bias", bias_array, dtype);
  const Activation activation = ParseActivation(activation_name, dtype);
  MatMulProblem problem;
  ThrowIfError(MakeMatMulProblem(dtype, ParseLayout("layout_a", layout_a),
                                 ParseLayout("layout_b", layout_b), *a.shape(), *b.shape(),
                                 &problem));
  if (bias) ThrowIfError(CheckBias(problem, *bias.shape()));

  py::array y = NewArray(NativeDType(a_array), problem.ShapeOfY(), poison);
  py::object z = py::none();
  if (return_preactivation) z = NewArray(NativeDType(a_array), problem.ShapeOfY(), poison);
  const cpu::ForwardTensors tensors{a.data(), b.data(), bias.data(), y.mutable_data(),
                                    z.is_none() ? nullptr : py::cast<py::array>(z).mutable_data()};
  ThreadsHost host = MakeHost(threads);
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::FusedMatMul(problem, activation, tensors, host);
  }
  ThrowIfError(status);
  if (return_preactivation) return py::make_tuple(y, z);
  return y;
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

// A boolean or floating array that broadcasts against the rows of y.
RowWeights ParseRows(const py::object& rows, const Shape& y) {
  RowWeights weights;
  if (rows.is_none()) return weights;
  const auto make = [&](const auto& array) {
    ThrowIfError(MakeRowWeights(array.data(), ShapeOf(array), y, &weights));
    return weights;
  };
  if (py::isinstance<py::array_t<bool>>(rows)) {
    return make(py::cast<py::array_t<bool, py::array::c_style>>(rows));
  }
  return make(py::cast<py::array_t<double, py::array::c_style | py::array::forcecast>>(rows));
}

// From the names of axes to (begin, end, step), end None for all, or an array of indices. Operands
// that are not needed may have no shape.
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

py::dict MatMulGradient(const py::array& dy_array, const std::optional<py::array>& a_array,
                        const std::optional<py::array>& b_array,
                        const std::optional<py::array>& saved_array,
                        const std::vector<std::string>& needed, const std::string& layout_a,
                        const std::string& layout_b, const std::string& activation_name,
                        const std::optional<Shape>& a_shape, const std::optional<Shape>& b_shape,
                        const std::map<std::string, double>& scale_values, const py::object& rows,
                        const py::dict& regions, const std::vector<std::string>& compact,
                        int threads, bool poison) {
  const DType dtype = DTypeOf("dy", dy_array);
  if (!HasGradients(dtype))
    throw py::type_error("`dy` is an integer array; integers have no gradient");
  const Argument dy("dy", dy_array, dtype);
  const Argument a("a", a_array, dtype);
  const Argument b("b", b_array, dtype);
  const Argument saved("saved", saved_array, dtype);
  const Activation activation = ParseActivation(activation_name, dtype);
  const GradientNeeds needs = ParseNeeded(needed);
  GradientPolicy policy;
  policy.scales = ParseScales(scale_values);
  if (needs.a && !b) throw py::value_error("the gradient of `a` needs `b`");
  if (needs.b && !a) throw py::value_error("the gradient of `b` needs `a`");
  if (SavedFor(activation) != Saved::kNothing && (!saved || *saved.shape() != *dy.shape())) {
    throw py::value_error(
        "`saved` must have the shape of `dy`, " + ToString(*dy.shape()) +
        (saved ? "; its shape is " + ToString(*saved.shape()) : std::string(", and is missing")));
  }
  if (dy.shape()->size() < 2) {
    throw py::value_error("`dy` must have rank 2 or more; its shape is " + ToString(*dy.shape()));
  }
  MatMulProblem problem;
  const bool has_products = needs.a || needs.b;
  if (has_products) {
    const Shape* shape_a = a ? a.shape() : (a_shape ? &*a_shape : nullptr);
    const Shape* shape_b = b ? b.shape() : (b_shape ? &*b_shape : nullptr);
    ThrowIfError(MakeGradientProblem(dtype, ParseLayout("layout_a", layout_a),
                                     ParseLayout("layout_b", layout_b), *dy.shape(), shape_a,
                                     shape_b, &problem));
  }
  const int64_t cols = dy.shape()->back();
  const int64_t num_rows = cols == 0 ? 0 : NumElements(*dy.shape()) / cols;
  policy.rows = ParseRows(rows, *dy.shape());
  policy.regions = ParseRegions(regions, needs, problem.shape_a, problem.shape_b, cols);
  Shape gradient_a = problem.shape_a, gradient_b = problem.shape_b;
  for (const std::string& name : compact) {
    Shape& shape = name == "a" ? gradient_a : gradient_b;
    if ((name != "a" && name != "b") || shape.size() != 2) {
      throw py::value_error("`compact` has \"" + name + "\"; due are \"a\" and \"b\", if matrices");
    }
    const Selection& selected = name == "a" ? policy.regions.a_rows : policy.regions.b_rows;
    (name == "a" ? policy.compact_a : policy.compact_b) = true;
    shape = ShapeOfGradient(shape, /*is_compact=*/true, selected);
  }

  py::dict results;
  const auto result = [&](bool need, const char* name, const Shape& shape) -> void* {
    if (!need) return nullptr;
    py::array array = NewArray(NativeDType(dy_array), shape, poison);
    results[name] = array;
    return array.mutable_data();
  };
  cpu::BackwardTensors tensors{dy.data(), a.data(), b.data(), saved.data()};
  tensors.da = result(needs.a, "a", gradient_a);
  tensors.db = result(needs.b, "b", gradient_b);
  tensors.dbias = result(needs.bias, "bias", {cols});
  tensors.dz = result(needs.z, "z", *dy.shape());
  ThreadsHost host = MakeHost(threads);
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::FusedMatMulGradient(dtype, num_rows, cols, has_products ? &problem : nullptr,
                                      activation, policy, tensors, host);
  }
  ThrowIfError(status);
  return results;
}

py::list Describe(const std::vector<Product>& products, double alpha) {
  py::list described;
  for (const Product& p : products) {
    py::dict product;
    product["m"] = p.m;
    product["n"] = p.n;
    product["k"] = p.k;
    product["outputs"] = p.outputs();
    product["terms"] = p.terms();
    product["alpha"] = alpha;
    described.append(product);
  }
  return described;
}

py::dict Plan(const Shape& a, const Shape& b, const std::string& layout_a,
              const std::string& layout_b, const std::string& activation_name,
              const std::vector<std::string>& needed,
              const std::map<std::string, double>& scale_values, const py::object& rows,
              const py::dict& regions) {
  MatMulProblem problem;
  ThrowIfError(MakeMatMulProblem(DType::kFloat, ParseLayout("layout_a", layout_a),
                                 ParseLayout("layout_b", layout_b), a, b, &problem));
  GradientPolicy policy;
  policy.scales = ParseScales(scale_values);
  policy.rows = ParseRows(rows, problem.ShapeOfY());
  const GradientNeeds needs = ParseNeeded(needed);
  policy.regions = ParseRegions(regions, needs, a, b, problem.n);
  const GradientPlan plan =
      MakePlan(&problem, ParseActivation(activation_name, DType::kFloat), needs, policy);
  py::dict result;
  result["pass_over_dy"] = plan.pass_over_dy;
  result["writes_dz"] = plan.writes_dz;
  result["sums_bias"] = plan.sums_bias;
  result["masks_dz"] = plan.b.masks_dz;
  result["masks_da"] = plan.a.masks_result;
  result["compacts_dz"] = plan.compacts_dz;
  py::dict products;
  products["forward"] = Describe({ForwardProduct(problem)}, 1);
  if (plan.a.runs()) products["a"] = Describe(plan.a.products, plan.a.alpha);
  if (plan.b.runs()) products["b"] = Describe(plan.b.products, plan.b.alpha);
  result["products"] = products;
  return result;
}

py::dict Activations() {
  constexpr const char* kSavedNames[] = {"nothing", "output", "preactivation"};
  py::dict table;
  for (const ActivationRow& row : kActivations) {
    table[row.name] = kSavedNames[static_cast<int>(row.saved)];
  }
  return table;
}

py::dict KernelStats() {
  py::dict stats;
  for (const auto& [name, pass] :
       {std::pair("forward", Pass::kForward), std::pair("backward", Pass::kBackward)}) {
    const PassStats counted = ReadStats(pass);
    py::dict entry;
    entry["products"] = counted.products;
    entry["flops"] = counted.flops;
    stats[name] = entry;
  }
  return stats;
}

py::object NoneIfEmpty(const char* text) {
  return *text == '\0' ? py::object(py::none()) : py::object(py::str(text));
}

py::dict BuildInfo() {
  py::dict info;
  info["version"] = STOPGRAD_VERSION;
  info["tensorflow"] = NoneIfEmpty(STOPGRAD_TENSORFLOW_VERSION);
  info["tensorflow_distribution"] = NoneIfEmpty(STOPGRAD_TENSORFLOW_DISTRIBUTION);
  info["xla_missing"] = NoneIfEmpty(STOPGRAD_XLA_MISSING);
  info["cxx11_abi"] = static_cast<int>(_GLIBCXX_USE_CXX11_ABI);
  info["compiler"] = STOPGRAD_COMPILER;
  info["instructions"] = cpu::GetTarget().name;
  return info;
}

}  // namespace
}  // namespace stopgrad

PYBIND11_MODULE(_kernels, module) {
  using namespace py::literals;
  using namespace stopgrad;
  module.doc() = "The kernels of stopgrad_op on NumPy arrays, without TensorFlow.";
  module.def("matmul", MatMul, "a"_a, "b"_a, "bias"_a = py::none(), py::kw_only(),
             "layout_a"_a = "normal", "layout_b"_a = "normal", "activation"_a = "linear",
             "return_preactivation"_a = false, "threads"_a = 1, "poison"_a = false,
             "y = f(op(a) op(b) + bias), with broadcasting batch dimensions.");
  module.def("matmul_gradient", MatMulGradient, "dy"_a, "a"_a = py::none(), "b"_a = py::none(),
             "saved"_a = py::none(), py::kw_only(), "needed"_a, "layout_a"_a = "normal",
             "layout_b"_a = "normal", "activation"_a = "linear", "a_shape"_a = py::none(),
             "b_shape"_a = py::none(), "scales"_a = std::map<std::string, double>(),
             "rows"_a = py::none(), "regions"_a = py::dict(),
             "compact"_a = std::vector<std::string>(), "threads"_a = 1, "poison"_a = false,
             "The gradients named in `needed`, as a dict.");
  module.def("plan", Plan, "a_shape"_a, "b_shape"_a, py::kw_only(), "layout_a"_a = "normal",
             "layout_b"_a = "normal", "activation"_a = "linear", "needed"_a,
             "scales"_a = std::map<std::string, double>(), "rows"_a = py::none(),
             "regions"_a = py::dict(), "What the backward pass would do, without doing it.");
  module.def("activations", Activations, "Name and what is saved of every activation.");
  module.def("kernel_stats", KernelStats);
  module.def("reset_kernel_stats", ResetStats);
  module.def("build_info", BuildInfo);
}
