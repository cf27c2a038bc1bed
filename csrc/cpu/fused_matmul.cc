#include "cpu/fused_matmul.h"

#include <algorithm>
#include <complex>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/stats.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/storage.h"
#include "cpu/targets.h"

namespace stopgrad::cpu {

Status FusedMatMul(const MatMulProblem& problem, Activation activation,
                   const ForwardTensors& tensors, Host& host) {
  const Product product = ForwardProduct(problem);
  const Epilogue epilogue{activation, tensors.bias, tensors.z};
  const int64_t flops = product.Flops(IsComplex(problem.dtype));
  Work work(host, flops);
  AddProduct(problem.dtype, product, 1, {tensors.a}, {tensors.b}, tensors.y, epilogue, &work);
  const Status status = work.Run();
  if (status.ok() && flops > 0) CountProduct(Pass::kForward, flops);
  return status;
}

namespace {

// Sums of this many rows are added in the accumulator type, sums of those in double: short chains
// of roundings, and the same ones whatever the number of threads.
constexpr int64_t kRowsPerSum = 64;
constexpr int64_t kColsPerTask = 1024;

// Few rows are divided among the threads, many leave few sums to be added at the end.
int64_t RowsPerTask(int64_t rows) {
  constexpr int64_t kTasks = 64;
  return std::clamp<int64_t>(rows / kTasks / kRowsPerSum, 2, 16) * kRowsPerSum;
}

template <typename Accumulator>
using WideSum =
    std::conditional_t<std::is_floating_point_v<Accumulator>, double, std::complex<double>>;

// The one pass over dY, and what it writes.
struct DyPass {
  DType dtype;
  Activation activation;
  int64_t rows;
  int64_t cols;
  const void* dy;
  const void* saved;
  const int64_t* places;  // of the rows, in elements; null: one behind the other
  const uint8_t* active;  // 0 for each row that is zeros; null: all are active
  const double* weights;  // of the rows; null where all are 1
  void* dz;               // null: not written
  void* dbias;            // likewise
  double bias_scale;
  const Selection* bias_region;

  // Nothing but the bias gradient reads dZ, so only the columns that learn matter.
  int64_t first_col() const { return dz == nullptr && dbias ? bias_region->At(0) : 0; }
  int64_t last_col() const {
    return dz == nullptr && dbias ? bias_region->At(bias_region->Count(cols) - 1) + 1 : cols;
  }
};

// Adds the pass. Its jobs are blocks of rows and columns; where dBias is needed each leaves its
// column sums in a row of `partial`, and these are added in order at the end.
template <typename Traits>
Status AddPass(const DyPass& pass, Host& host, Work* work) {
  using Storage = typename Traits::Storage;
  using Accumulator = typename Traits::Accumulator;
  using Sum = WideSum<Accumulator>;
  const ActivationGradientLoop loop =
      GetTarget().elementwise->activation_gradient[static_cast<int>(pass.dtype)]
                                                  [static_cast<int>(pass.activation)];
  const int64_t first_col = pass.first_col();
  const int64_t cols = pass.last_col() - first_col;
  const int64_t rows_per_task = RowsPerTask(pass.rows);
  const int64_t row_blocks = CeilDiv(pass.rows, rows_per_task);
  const int64_t col_blocks = CeilDiv(cols, kColsPerTask);
  Sum* partial = nullptr;
  if (pass.dbias != nullptr) {
    partial =
        static_cast<Sum*>(host.Allocate(std::max<int64_t>(1, row_blocks * cols) * sizeof(Sum)));
    if (partial == nullptr) {
      return Status(StatusCode::kResourceExhausted, "no memory for the sums of a bias gradient");
    }
  }

  const auto run_block = [=](int64_t block) {
    const int64_t row_block = block / col_blocks;
    const int64_t col = block % col_blocks * kColsPerTask;
    const int64_t block_cols = std::min(kColsPerTask, cols - col);
    const int64_t row_end = std::min(pass.rows, (row_block + 1) * rows_per_task);
    Accumulator sums[kColsPerTask];
    Sum* block_sums = partial != nullptr ? partial + row_block * cols + col : nullptr;
    if (block_sums != nullptr) std::fill_n(block_sums, block_cols, Sum(0));
    for (int64_t row = row_block * rows_per_task; row < row_end; row += kRowsPerSum) {
      const int64_t from = (pass.places ? 0 : row * pass.cols) + first_col + col;
      if (block_sums != nullptr) std::fill_n(sums, block_cols, Accumulator(0));
      ActivationGradientRows rows{};
      rows.dy = static_cast<const Storage*>(pass.dy) + from;
      if (pass.saved != nullptr) rows.saved = static_cast<const Storage*>(pass.saved) + from;
      if (pass.dz != nullptr) rows.dz = static_cast<Storage*>(pass.dz) + row * pass.cols + col;
      if (block_sums != nullptr) rows.sums = sums;
      rows.rows = std::min(kRowsPerSum, row_end - row);
      rows.cols = block_cols;
      rows.row_stride = rows.dz_stride = pass.cols;
      if (pass.places != nullptr) rows.places = pass.places + row;
      if (pass.active != nullptr) rows.active = pass.active + row;
      if (pass.weights != nullptr) rows.weights = pass.weights + row;
      loop(rows);
      if (block_sums == nullptr) continue;
      for (int64_t j = 0; j < block_cols; ++j) block_sums[j] += Sum(sums[j]);
    }
  };
  const int64_t elements_per_block =
      std::min(pass.rows, rows_per_task) * std::min(cols, kColsPerTask);
  work->AddRanges(row_blocks * col_blocks,
                  CeilDiv(kMinElementsPerTask, std::max<int64_t>(1, elements_per_block)),
                  [run_block](int64_t begin, int64_t end) {
                    for (int64_t block = begin; block < end; ++block) run_block(block);
                  });
  if (partial == nullptr) return Status();

  auto* const dbias = static_cast<Storage*>(pass.dbias);
  std::memset(static_cast<void*>(dbias), 0, pass.cols * sizeof(Storage));
  const int64_t count = pass.bias_region->Count(pass.cols);
  work->AddRanges(count, kMinElementsPerTask, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t j = pass.bias_region->At(i);
      Sum sum(0);
      for (int64_t block = 0; block < row_blocks; ++block) {
        sum += partial[block * cols + j - first_col];
      }
      Store(static_cast<Accumulator>(sum * pass.bias_scale), &dbias[j]);
    }
  });
  return Status();
}

Status AddPass(const DyPass& pass, Host& host, Work* work) {
  return VisitDType(pass.dtype, [&](auto traits) {
    using Traits = decltype(traits);
    if constexpr (Traits::kGradients) {
      return AddPass<Traits>(pass, host, work);
    } else {
      return InvalidArgument("integers have no gradient");
    }
  });
}

void AddZeros(void* data, int64_t bytes, Work* work) {
  work->AddRanges(bytes, kMinElementsPerTask * 8, [data](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(data) + begin, 0, end - begin);
  });
}

// The active rows: where they are, in elements, and their weights, none where all are 1.
struct ActiveRows {
  std::vector<int64_t> places;
  std::vector<double> weights;
};

ActiveRows FindActive(const RowWeights& rows, int64_t cols) {
  ActiveRows found;
  found.places.reserve(rows.num_active);
  found.weights.reserve(rows.weights.empty() ? 0 : rows.num_active);
  for (int64_t row = 0; row < rows.total(); ++row) {
    if (!rows.active[row]) continue;
    found.places.push_back(row * cols);
    if (!rows.weights.empty()) found.weights.push_back(rows.weights[row]);
  }
  return found;
}

// Whether dZ need not be written, as the prologue of the one product that reads it computes it.
bool ComputesDzAsItPacks(const GradientPlan& fused, DType dtype, const Work& work) {
  if (fused.pass_over_dy || fused.a.runs() == fused.b.runs()) return false;
  const bool of_a = fused.a.runs();
  const std::vector<Product>& products = of_a ? fused.a.products : fused.b.products;
  return std::all_of(products.begin(), products.end(), [&](const Product& product) {
    return ComputesAsItPacks(dtype, product, of_a, work);
  });
}

int64_t FlopsOf(const GradientPlan& plan, DType dtype, int64_t pass_elements) {
  const int64_t pass = plan.pass_over_dy ? pass_elements : 0;
  return plan.a.Flops(IsComplex(dtype)) + plan.b.Flops(IsComplex(dtype)) +
         pass * (kMinFlopsPerTask / kMinElementsPerTask);
}

}  // namespace

Status FusedMatMulGradient(DType dtype, int64_t rows, int64_t cols, const MatMulProblem* problem,
                           Activation activation, const GradientPolicy& policy,
                           const BackwardTensors& all_tensors, Host& host) {
  BackwardTensors tensors = all_tensors;
  const Status apart = TakeDzApart(policy, &tensors, [&](const BackwardTensors& dz_alone) {
    return FusedMatMulGradient(dtype, rows, cols, nullptr, activation, {}, dz_alone, host);
  });
  if (!apart.ok()) return apart;
  const GradientNeeds needs = NeedsOf(tensors);

  const int64_t pass_elements = rows * cols;
  const bool is_linear = activation == Activation::kLinear;
  GradientPlan plan;
  bool is_prologue = false;
  if (!is_linear && needs.a != needs.b && !needs.bias && !needs.z) {
    ProductAbilities abilities;
    abilities.compute_dz = true;
    plan = MakePlan(problem, activation, needs, policy, abilities);
    is_prologue = ComputesDzAsItPacks(plan, dtype, Work(host, FlopsOf(plan, dtype, pass_elements)));
  }
  if (!is_prologue) plan = MakePlan(problem, activation, needs, policy);
  Work work(host, FlopsOf(plan, dtype, pass_elements));

  Factor dz{tensors.dy};  // what the products read
  if (is_prologue) dz.prologue = {activation, tensors.saved};
  ActiveRows active_rows;
  if (plan.pass_over_dy) {
    DyPass pass{};
    pass.dtype = dtype;
    pass.activation = activation;
    pass.rows = rows;
    pass.cols = cols;
    pass.dy = tensors.dy;
    pass.saved = is_linear ? nullptr : tensors.saved;
    const RowWeights& weights = policy.rows;
    if (plan.compacts_dz) {
      active_rows = FindActive(weights, cols);
      pass.rows = weights.num_active;
      pass.places = active_rows.places.data();
      if (!active_rows.weights.empty()) pass.weights = active_rows.weights.data();
    } else {
      if (weights.has_zeros()) pass.active = weights.active.data();
      if (!weights.weights.empty()) pass.weights = weights.weights.data();
    }
    if (plan.writes_dz) {
      pass.dz = needs.z ? tensors.dz : host.Allocate(pass.rows * cols * SizeOf(dtype));
      if (pass.dz == nullptr) {
        return Status(StatusCode::kResourceExhausted,
                      "no memory for the gradient of an activation");
      }
      dz.data = pass.dz;
    }
    if (plan.sums_bias) pass.dbias = tensors.dbias;
    pass.bias_scale = policy.scales.bias;
    pass.bias_region = &policy.regions.bias;
    const Status status = AddPass(pass, host, &work);
    if (!status.ok()) return status;
  }
  if (needs.bias && !plan.sums_bias) std::memset(tensors.dbias, 0, cols * SizeOf(dtype));
  const auto bytes = [&](const Shape& operand, bool is_compact, const Selection& rows_of_operand) {
    return NumElements(ShapeOfGradient(operand, is_compact, rows_of_operand)) * SizeOf(dtype);
  };
  if (plan.a.zeros_first) {
    AddZeros(tensors.da, bytes(problem->shape_a, policy.compact_a, policy.regions.a_rows), &work);
  }
  if (plan.b.zeros_first) {
    AddZeros(tensors.db, bytes(problem->shape_b, policy.compact_b, policy.regions.b_rows), &work);
  }
  Epilogue epilogue;
  if (plan.a.masks_result) epilogue.active = policy.rows.active.data();
  AddProducts(dtype, plan.a.products, plan.a.alpha, dz, {tensors.b}, tensors.da, epilogue, &work);
  if (plan.b.masks_dz) dz.prologue.active = policy.rows.active.data();
  AddProducts(dtype, plan.b.products, plan.b.alpha, {tensors.a}, dz, tensors.db, Epilogue(), &work);
  const Status status = work.Run();
  if (!status.ok()) return status;
  for (const GradientProducts* gradient : {&plan.a, &plan.b}) {
    if (gradient->runs()) CountProduct(Pass::kBackward, gradient->Flops(IsComplex(dtype)));
  }
  return Status();
}

}  // namespace stopgrad::cpu
