// stopgrad_op._kernels: the CPU kernels on NumPy arrays, the counters and what was built.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/activation.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/stats.h"
#include "cpu/fused_matmul.h"
#include "cpu/targets.h"
#include "python/arguments.h"
#include "python/cuda_module.h"
#include "python/kernels.h"
#include "python/stats.h"

namespace stopgrad {
namespace {

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

// NumPy arrays, and threads of the processor.
class NumPyBackend {
 public:
  explicit NumPyBackend(const py::kwargs& settings) {
    py::dict left = py::cast<py::dict>(settings.attr("copy")());
    const int threads = TakeSetting(left, "threads", 1);
    CheckNoSettingsLeft(left);
    if (threads < 1 || threads > 256) {
      throw py::value_error("`threads` must be from 1 to 256 and is " + std::to_string(threads));
    }
    host_.emplace(threads);
  }

  Input Read(const char* name, const py::object& object) {
    const py::array array = py::cast<py::array>(object);
    Input input;
    input.given = true;
    input.dtype = ParseDType(name, py::cast<std::string>(array.dtype().attr("name")));
    // In this machine's byte order.
    const py::object dtype = array.dtype().attr("newbyteorder")("=");
    if (!dtype_) dtype_ = py::cast<py::dtype>(dtype);
    arrays_.push_back(
        py::cast<py::array>(py::module_::import("numpy").attr("ascontiguousarray")(array, dtype)));
    input.data = arrays_.back().data();
    // ascontiguousarray makes a vector of a scalar.
    input.shape.assign(array.shape(), array.shape() + array.ndim());
    return input;
  }

  py::object New(const Shape& shape, bool poison, void** data) {
    py::array array(*dtype_, shape);
    *data = array.mutable_data();
    if (poison && array.nbytes() > 0) std::memset(*data, 0xff, array.nbytes());
    return array;
  }

  Status Forward(const ForwardCall& call, const ForwardTensors& tensors) {
    return cpu::FusedMatMul(call.problem, call.activation, tensors, *host_);
  }

  Status Backward(const GradientCall& call, const BackwardTensors& tensors) {
    return cpu::FusedMatMulGradient(call.dtype, call.rows, call.cols, call.problem_if_any(),
                                    call.activation, call.policy, tensors, *host_);
  }

 private:
  std::optional<ThreadsHost> host_;
  std::optional<py::dtype> dtype_;
  std::vector<py::array> arrays_;
};

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

py::object NoneIfEmpty(const char* text) {
  return *text == '\0' ? py::object(py::none()) : py::object(py::str(text));
}

py::dict BuildInfo() {
  py::dict info;
  info["version"] = STOPGRAD_VERSION;
  info["tensorflow"] = NoneIfEmpty(STOPGRAD_TENSORFLOW_VERSION);
  info["tensorflow_distribution"] = NoneIfEmpty(STOPGRAD_TENSORFLOW_DISTRIBUTION);
  info["xla_missing"] = NoneIfEmpty(STOPGRAD_XLA_MISSING);
  info["cuda_missing"] = NoneIfEmpty(STOPGRAD_CUDA_MISSING);
  info["cxx11_abi"] = static_cast<int>(_GLIBCXX_USE_CXX11_ABI);
  info["compiler"] = STOPGRAD_COMPILER;
  info["instructions"] = cpu::GetTarget().name;
  return info;
}

}  // namespace
}  // namespace stopgrad

PYBIND11_MODULE(_kernels, module) {
  using namespace stopgrad;
  using namespace py::literals;
  module.doc() = "The kernels of stopgrad_op on NumPy arrays, without TensorFlow.";
  Kernels<NumPyBackend>::Define(module);
#ifdef STOPGRAD_HAVE_CUDA
  py::module_ cuda = module.def_submodule("cuda");
  DefineCuda(cuda);
#endif
  module.def("plan", Plan, "a_shape"_a, "b_shape"_a, py::kw_only(), "layout_a"_a = "normal",
             "layout_b"_a = "normal", "activation"_a = "linear", "needed"_a,
             "scales"_a = std::map<std::string, double>(), "rows"_a = py::none(),
             "regions"_a = py::dict(), "What the backward pass would do, without doing it.");
  module.def("activations", Activations, "Name and what is saved of every activation.");
  module.def("kernel_stats", KernelStats);
  module.def("reset_kernel_stats", ResetStats);
  module.def("build_info", BuildInfo);
}
