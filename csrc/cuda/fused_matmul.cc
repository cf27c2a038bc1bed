#include "cuda/fused_matmul.h"

#include <string>
#include <utility>
#include <vector>

#include "core/stats.h"
#include "cuda/captures.h"
#include "cuda/device_kind.h"
#include "cuda/elementwise.h"
#include "cuda/memory.h"
#include "cuda/product.h"
#include "cuda/ranges.h"
#include "cuda/status.h"

namespace stopgrad::cuda {

namespace {

// What went wrong, with the problem and the device it went wrong with.
Status InContext(const Status& status, DType dtype, const std::string& problem) {
  if (status.ok()) return status;
  const DeviceKind* kind = nullptr;
  const bool known = CurrentDevice(&kind).ok();
  return Status(status.code(), status.message() + "; in " + problem + ", " + NameOf(dtype) +
                                   (known ? ", on " + kind->name : std::string()));
}

std::string Describe(const MatMulProblem& p) {
  const auto layout = [](Layout layout) { return kLayoutNames[static_cast<int>(layout)]; };
  return "the product m=" + std::to_string(p.m) + " n=" + std::to_string(p.n) +
         " k=" + std::to_string(p.k) + " of a " + ToString(p.shape_a) + " (" + layout(p.layout_a) +
         ") and b " + ToString(p.shape_b) + " (" + layout(p.layout_b) + ")";
}

Status Forward(const MatMulProblem& problem, const Product& product, Activation activation,
               const ForwardTensors& tensors, Device& device) {
  Epilogue epilogue;
  epilogue.activation = activation;
  epilogue.bias = tensors.bias;
  epilogue.z = tensors.z;
  return Enqueue(problem.dtype, product, 1, tensors.a, tensors.b, tensors.y, epilogue,
                 /*repeats=*/true, device);
}

// What the pass needs of the row weights, on the device.
Status UploadRows(const RowWeights& rows, bool compacts, int64_t cols, Device& device,
                  DyPass* pass) {
  if (!compacts) {
    Status status;
    if (rows.has_zeros()) status = Upload(rows.active, device, &pass->active);
    if (status.ok() && !rows.weights.empty()) status = Upload(rows.weights, device, &pass->weights);
    return status;
  }
  std::vector<int64_t> places;
  std::vector<double> weights;
  for (int64_t row = 0; row < rows.total(); ++row) {
    if (!rows.active[row]) continue;
    places.push_back(row * cols);
    if (!rows.weights.empty()) weights.push_back(rows.weights[row]);
  }
  pass->rows = rows.num_active;
  Status status = Upload(places, device, &pass->places);
  if (status.ok() && !weights.empty()) status = Upload(weights, device, &pass->weights);
  return status;
}

// Where dZ is dY and dB's product reads all of it, that may sum dBias on the way.
bool ProductSumsBias(const GradientPlan& plan, const GradientPolicy& policy, int64_t rows,
                     int64_t cols) {
  if (!plan.sums_bias || plan.writes_dz || policy.rows.given) return false;
  if (!policy.regions.bias.all() || policy.scales.bias != 1 || policy.scales.b != 1) return false;
  if (plan.b.products.size() != 1) return false;
  const Product& product = plan.b.products.front();
  return product.k == rows && product.n == cols && CanSumColumns(product);
}

Status Backward(DType dtype, int64_t rows, int64_t cols, const MatMulProblem* problem,
                Activation activation, const GradientPolicy& policy, const GradientNeeds& needs,
                const GradientPlan& plan, const BackwardTensors& tensors, Device& device) {
  const void* dz = tensors.dy;  // what the products read
  const bool product_sums_bias = ProductSumsBias(plan, policy, rows, cols);
  Status status;
  if (needs.bias && !product_sums_bias && !(plan.sums_bias && policy.regions.bias.all() && rows)) {
    status = EnqueueZeros(tensors.dbias, cols * SizeOf(dtype), device);
    if (!status.ok()) return status;
  }
  if (plan.writes_dz || (plan.sums_bias && !product_sums_bias)) {
    DyPass pass{};
    pass.dtype = dtype;
    pass.activation = activation;
    pass.rows = rows;
    pass.cols = pass.row_stride = pass.bias_cols = cols;
    pass.dy = tensors.dy;
    pass.saved = activation == Activation::kLinear ? nullptr : tensors.saved;
    pass.bias_scale = policy.scales.bias;
    pass.bias_region = &policy.regions.bias;
    if (plan.sums_bias) pass.dbias = tensors.dbias;
    if (policy.rows.given) {
      status = UploadRows(policy.rows, plan.compacts_dz, cols, device, &pass);
      if (!status.ok()) return status;
    }
    if (plan.writes_dz) {
      pass.dz = tensors.dz;
      if (!needs.z) {
        const size_t bytes = pass.rows * cols * SizeOf(dtype);
        pass.dz = device.Allocate(bytes);
        if (pass.dz == nullptr) return OutOfMemory("the gradient of an activation", bytes);
      }
      dz = pass.dz;
    } else {
      // Nothing but the bias gradient reads dZ, so only the columns that learn matter.
      const Selection& region = policy.regions.bias;
      pass.first_col = region.At(0);
      pass.cols = region.At(region.Count(cols) - 1) + 1 - pass.first_col;
      const int64_t skipped = pass.first_col * SizeOf(dtype);
      pass.dy = static_cast<const char*>(pass.dy) + skipped;
      if (pass.saved != nullptr) pass.saved = static_cast<const char*>(pass.saved) + skipped;
    }
    status = Enqueue(pass, device);
    if (!status.ok()) return status;
  }

  const auto run = [&](const GradientProducts& gradient, const Shape& operand, bool is_compact,
                       const Selection& selected, const void* a, const void* b, void* result,
                       const Epilogue& epilogue) {
    Status status;
    if (gradient.zeros_first) {
      const Shape shape = ShapeOfGradient(operand, is_compact, selected);
      status = EnqueueZeros(result, NumElements(shape) * SizeOf(dtype), device);
    }
    for (const Product& product : gradient.products) {
      if (!status.ok()) break;
      // The active rows, of which the products are made, are others in the next step.
      status = Enqueue(dtype, product, gradient.alpha, a, b, result, epilogue,
                       /*repeats=*/!policy.rows.given, device);
    }
    return status;
  };
  if (needs.a) {
    status = run(plan.a, problem->shape_a, policy.compact_a, policy.regions.a_rows, dz, tensors.b,
                 tensors.da, Epilogue());
    if (status.ok() && plan.a.masks_result) {
      const uint8_t* active = nullptr;
      status = Upload(policy.rows.active, device, &active);
      if (status.ok()) {
        status = EnqueueZeroRows(tensors.da, active, rows, problem->k * SizeOf(dtype), device);
      }
    }
    if (!status.ok()) return status;
  }
  if (needs.b) {
    Epilogue epilogue;
    if (product_sums_bias) epilogue.column_sums_of_b = tensors.dbias;
    status = run(plan.b, problem->shape_b, policy.compact_b, policy.regions.b_rows, tensors.a, dz,
                 tensors.db, epilogue);
  }
  return status;
}

}  // namespace

Status FusedMatMul(const MatMulProblem& problem, Activation activation,
                   const ForwardTensors& tensors, Device& device) {
  if (!HasGradients(problem.dtype)) return InvalidArgument("integers run on the CPU only");
  const Product product = ForwardProduct(problem);
  const int64_t flops = product.Flops(IsComplex(problem.dtype));
  const LeavesCapturesAlone guard;
  const Range range("forward", problem.m, problem.n, problem.k);
  const Status status = Forward(problem, product, activation, tensors, device);
  if (!status.ok()) return InContext(status, problem.dtype, Describe(problem));
  if (flops > 0) CountProduct(Pass::kForward, flops);
  return status;
}

Status FusedMatMulGradient(DType dtype, int64_t rows, int64_t cols, const MatMulProblem* problem,
                           Activation activation, const GradientPolicy& policy,
                           const BackwardTensors& all_tensors, Device& device) {
  if (!HasGradients(dtype)) return InvalidArgument("integers have no gradient");
  BackwardTensors tensors = all_tensors;
  const Status apart = TakeDzApart(policy, &tensors, [&](const BackwardTensors& dz_alone) {
    return FusedMatMulGradient(dtype, rows, cols, nullptr, activation, {}, dz_alone, device);
  });
  if (!apart.ok()) return apart;
  const GradientNeeds needs = NeedsOf(tensors);
  ProductAbilities abilities;
  abilities.mask_dz = false;  // cublasLt reads what is in memory
  abilities.gather_costs = device.gather_costs();
  const GradientPlan plan = MakePlan(problem, activation, needs, policy, abilities);
  const LeavesCapturesAlone guard;
  const Range range("backward", rows, cols, problem != nullptr ? problem->k : 0);
  const Status status =
      Backward(dtype, rows, cols, problem, activation, policy, needs, plan, tensors, device);
  if (!status.ok()) {
    const std::string what =
        "the gradient of y [" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
    return InContext(status, dtype, problem != nullptr ? what + ", " + Describe(*problem) : what);
  }
  for (const GradientProducts* gradient : {&plan.a, &plan.b}) {
    if (gradient->runs()) CountProduct(Pass::kBackward, gradient->Flops(IsComplex(dtype)));
  }
  return Status();
}

}  // namespace stopgrad::cuda
