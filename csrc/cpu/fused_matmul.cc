#include "cpu/fused_matmul.h"

#include <algorithm>
#include <complex>
#include <cstring>
#include <type_traits>

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

// Adds the one pass over dY. Its jobs are blocks of rows and columns; where dBias is needed each
// leaves its column sums in a row of `partial`, and these are added in order at the end.
template <typename Traits>
Status AddPassOverDy(DType dtype, int64_t rows, int64_t cols, Activation activation,
                     double bias_scale, const BackwardTensors& tensors, void* dz_data,
                     bool sums_bias, Host& host, Work* work) {
  using Storage = typename Traits::Storage;
  using Accumulator = typename Traits::Accumulator;
  using Sum = WideSum<Accumulator>;
  const ActivationGradientLoop loop =
      GetTarget()
          .elementwise->activation_gradient[static_cast<int>(dtype)][static_cast<int>(activation)];
  const int64_t rows_per_task = RowsPerTask(rows);
  const int64_t row_blocks = CeilDiv(rows, rows_per_task);
  const int64_t col_blocks = CeilDiv(cols, kColsPerTask);
  Sum* partial = nullptr;
  if (sums_bias) {
    partial =
        static_cast<Sum*>(host.Allocate(std::max<int64_t>(1, row_blocks * cols) * sizeof(Sum)));
    if (partial == nullptr) {
      return Status(StatusCode::kResourceExhausted, "no memory for the sums of a bias gradient");
    }
  }
  const auto* dy = static_cast<const Storage*>(tensors.dy);
  const auto* saved = static_cast<const Storage*>(tensors.saved);
  auto* dz = static_cast<Storage*>(dz_data);

  const auto run_block = [=](int64_t block) {
    const int64_t row_block = block / col_blocks;
    const int64_t col = block % col_blocks * kColsPerTask;
    const int64_t block_cols = std::min(kColsPerTask, cols - col);
    const int64_t row_end = std::min(rows, (row_block + 1) * rows_per_task);
    Accumulator sums[kColsPerTask];
    Sum* block_sums = sums_bias ? partial + row_block * cols + col : nullptr;
    if (sums_bias) std::fill_n(block_sums, block_cols, Sum(0));
    for (int64_t row = row_block * rows_per_task; row < row_end; row += kRowsPerSum) {
      const int64_t offset = row * cols + col;
      if (sums_bias) std::fill_n(sums, block_cols, Accumulator(0));
      loop(dy + offset, saved ? saved + offset : nullptr, dz ? dz + offset : nullptr,
           sums_bias ? sums : nullptr, std::min(kRowsPerSum, row_end - row), block_cols, cols,
           cols);
      if (!sums_bias) continue;
      for (int64_t j = 0; j < block_cols; ++j) block_sums[j] += Sum(sums[j]);
    }
  };
  const int64_t elements_per_block = std::min(rows, rows_per_task) * std::min(cols, kColsPerTask);
  work->AddRanges(row_blocks * col_blocks,
                  CeilDiv(kMinElementsPerTask, std::max<int64_t>(1, elements_per_block)),
                  [run_block](int64_t begin, int64_t end) {
                    for (int64_t block = begin; block < end; ++block) run_block(block);
                  });
  if (!sums_bias) return Status();

  auto* dbias = static_cast<Storage*>(tensors.dbias);
  work->AddRanges(cols, kMinElementsPerTask, [=](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      Sum sum(0);
      for (int64_t block = 0; block < row_blocks; ++block) sum += partial[block * cols + j];
      Store(static_cast<Accumulator>(sum * bias_scale), &dbias[j]);
    }
  });
  return Status();
}

// What a run of the product will count as.
int64_t Flops(const GradientProduct& planned, DType dtype) {
  return planned.runs ? planned.product.Flops(IsComplex(dtype)) : 0;
}

void AddGradient(const GradientProduct& planned, DType dtype, const Factor& a, const Factor& b,
                 void* c, int64_t elements, Work* work) {
  if (planned.runs) {
    AddProduct(dtype, planned.product, planned.alpha, a, b, c, Epilogue(), work);
  } else {
    std::memset(c, 0, elements * SizeOf(dtype));
  }
}

// Whether dZ need not be written, as a product's prologue computes it.
bool IsPrologue(const GradientPlan& plan, const GradientNeeds& needs, DType dtype,
                const Work& work) {
  if (needs.z || plan.sums_bias || plan.a.runs == plan.b.runs) return false;
  const Product& product = plan.a.runs ? plan.a.product : plan.b.product;
  return ComputesAsItPacks(dtype, product, plan.a.runs, work);
}

}  // namespace

Status FusedMatMulGradient(DType dtype, int64_t rows, int64_t cols, const MatMulProblem* problem,
                           Activation activation, const GradientScales& scales,
                           const BackwardTensors& tensors, Host& host) {
  const GradientNeeds needs{tensors.da != nullptr, tensors.db != nullptr, tensors.dbias != nullptr,
                            tensors.dz != nullptr};
  const GradientPlan plan = MakePlan(problem, activation, needs, scales);
  const int64_t flops[] = {Flops(plan.a, dtype), Flops(plan.b, dtype)};
  const int64_t pass_flops =
      plan.pass_over_dy ? rows * cols * (kMinFlopsPerTask / kMinElementsPerTask) : 0;
  Work work(host, flops[0] + flops[1] + pass_flops);

  Factor dz{tensors.dy};  // what the products read
  if (plan.writes_dz && IsPrologue(plan, needs, dtype, work)) {
    dz.prologue = {activation, tensors.saved};
  } else if (plan.pass_over_dy) {
    void* written_dz = nullptr;
    if (plan.writes_dz) {
      written_dz = tensors.dz;
      if (written_dz == nullptr) written_dz = host.Allocate(rows * cols * SizeOf(dtype));
      if (written_dz == nullptr) {
        return Status(StatusCode::kResourceExhausted,
                      "no memory for the gradient of an activation");
      }
      dz.data = written_dz;
    }
    const Status status = VisitDType(dtype, [&](auto traits) {
      using Traits = decltype(traits);
      if constexpr (Traits::kGradients) {
        return AddPassOverDy<Traits>(dtype, rows, cols, activation, scales.bias, tensors,
                                     written_dz, plan.sums_bias, host, &work);
      } else {
        return InvalidArgument("integers have no gradient");
      }
    });
    if (!status.ok()) return status;
  }
  if (needs.bias && !plan.sums_bias) std::memset(tensors.dbias, 0, cols * SizeOf(dtype));
  if (needs.a) {
    AddGradient(plan.a, dtype, dz, {tensors.b}, tensors.da, NumElements(problem->shape_a), &work);
  }
  if (needs.b) {
    AddGradient(plan.b, dtype, {tensors.a}, dz, tensors.db, NumElements(problem->shape_b), &work);
  }
  const Status status = work.Run();
  if (!status.ok()) return status;
  for (int64_t count : flops) {
    if (count > 0) CountProduct(Pass::kBackward, count);
  }
  return Status();
}

}  // namespace stopgrad::cpu
