#include "cpu/gemm.h"

#include <algorithm>
#include <complex>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cpu/elementwise.h"
#include "cpu/openblas.h"
#include "cpu/parallel.h"

namespace stopgrad::cpu {

namespace {

// One matrix product, C = alpha A B + beta C, as a shard of a batched one. C has dense rows.
struct MatrixProduct {
  int64_t m, n, k;
  MatrixView a, b;
  int64_t ldc;
};

// CBLAS's names for storage order and for a factor that is read as it lies, transposed, and either
// of them conjugated (the last one is OpenBLAS's extension).
constexpr int kRowMajor = 101;
constexpr int kNoTrans = 111;
constexpr int kTrans = 112;
constexpr int kConjTrans = 113;
constexpr int kConjNoTrans = 114;

struct BlasMatrix {
  int transpose;
  int64_t leading_dimension;
};

// One of the strides of every operand is 1 (core/problem.cc makes no other views).
BlasMatrix ToBlas(const MatrixView& view, int64_t rows, int64_t cols) {
  if (view.col_stride == 1) {
    return {view.conjugate ? kConjNoTrans : kNoTrans,
            std::max({view.row_stride, cols, int64_t{1}})};
  }
  return {view.conjugate ? kConjTrans : kTrans, std::max({view.col_stride, rows, int64_t{1}})};
}

template <typename Scalar, typename Function>
void CallBlas(Function gemm, const MatrixProduct& p, Scalar alpha, const Scalar* a, const Scalar* b,
              Scalar beta, Scalar* c) {
  const BlasMatrix blas_a = ToBlas(p.a, p.m, p.k);
  const BlasMatrix blas_b = ToBlas(p.b, p.k, p.n);
  const auto call = [&](auto alpha_argument, auto beta_argument) {
    gemm(kRowMajor, blas_a.transpose, blas_b.transpose, p.m, p.n, p.k, alpha_argument, a,
         blas_a.leading_dimension, b, blas_b.leading_dimension, beta_argument, c, p.ldc);
  };
  if constexpr (std::is_floating_point_v<Scalar>) {
    call(alpha, beta);
  } else {
    call(static_cast<const void*>(&alpha), static_cast<const void*>(&beta));
  }
}

void MultiplyAdd(const MatrixProduct& p, float alpha, const float* a, const float* b, float beta,
                 float* c) {
  CallBlas(GetOpenBlas().sgemm, p, alpha, a, b, beta, c);
}
void MultiplyAdd(const MatrixProduct& p, double alpha, const double* a, const double* b,
                 double beta, double* c) {
  CallBlas(GetOpenBlas().dgemm, p, alpha, a, b, beta, c);
}
void MultiplyAdd(const MatrixProduct& p, std::complex<float> alpha, const std::complex<float>* a,
                 const std::complex<float>* b, std::complex<float> beta, std::complex<float>* c) {
  CallBlas(GetOpenBlas().cgemm, p, alpha, a, b, beta, c);
}
void MultiplyAdd(const MatrixProduct& p, std::complex<double> alpha, const std::complex<double>* a,
                 const std::complex<double>* b, std::complex<double> beta,
                 std::complex<double>* c) {
  CallBlas(GetOpenBlas().zgemm, p, alpha, a, b, beta, c);
}

// BLAS has no integers. Row by row of B, so that the inner loop is vector code where B's rows are
// dense.
template <typename Integer>
std::enable_if_t<std::is_integral_v<Integer>> MultiplyAdd(const MatrixProduct& p, Integer,
                                                          const Integer* a, const Integer* b,
                                                          Integer beta, Integer* c) {
  const AddScaledLoop add_scaled =
      GetElementwiseLoops()
          .add_scaled[static_cast<int>(sizeof(Integer) == 4 ? DType::kInt32 : DType::kInt64)];
  for (int64_t i = 0; i < p.m; ++i) {
    Integer* c_row = c + i * p.ldc;
    if (beta == 0) std::fill(c_row, c_row + p.n, Integer(0));
    for (int64_t l = 0; l < p.k; ++l) {
      const Integer factor = a[i * p.a.row_stride + l * p.a.col_stride];
      const Integer* b_row = b + l * p.b.row_stride;
      if (p.b.col_stride == 1) {
        add_scaled(b_row, &factor, c_row, p.n);
      } else {
        for (int64_t j = 0; j < p.n; ++j) c_row[j] += factor * b_row[j * p.b.col_stride];
      }
    }
  }
}

// The batch dimensions split into those that keep C and those that sum into it.
struct BatchLoops {
  std::vector<BatchDim> outputs;
  std::vector<BatchDim> terms;
};

BatchLoops SplitBatch(const std::vector<BatchDim>& batch) {
  BatchLoops loops;
  for (const BatchDim& dim : batch) (dim.sums() ? loops.terms : loops.outputs).push_back(dim);
  return loops;
}

struct Offsets {
  int64_t a = 0;
  int64_t b = 0;
  int64_t c = 0;
};

// Where the matrices of the index-th combination of `dims` begin, row-major.
Offsets OffsetsAt(const std::vector<BatchDim>& dims, int64_t index) {
  Offsets offsets;
  for (size_t i = dims.size(); i-- > 0;) {
    const int64_t position = index % dims[i].extent;
    index /= dims[i].extent;
    offsets.a += position * dims[i].a_stride;
    offsets.b += position * dims[i].b_stride;
    offsets.c += position * dims[i].c_stride;
  }
  return offsets;
}

// OpenBLAS adds up the products of a small matrix in one long chain of roundings, where it cuts the
// sums of a large one into pieces. Pieces of this length keep the error of both alike.
constexpr int64_t kSmallTile = 64 * 64;
constexpr int64_t kLongestSum = 256;

// A grid of tiles over every C.
struct Tiling {
  int64_t rows;
  int64_t cols;
  int64_t row_tiles;
  int64_t col_tiles;
};

Tiling ChooseTiling(const Product& p, int64_t outputs, int64_t flops, int threads) {
  const int64_t wanted = std::min<int64_t>(threads, flops / kMinFlopsPerTask);
  // Tiles per C such that all tiles together are a multiple of the threads.
  const int64_t tiles = wanted <= 1 ? 1 : wanted / std::gcd(wanted, outputs);
  // Edges on a multiple of 16 keep the library's inner kernels full. The longer side is split,
  // since each tile reads the other factor whole.
  const auto edge = [&](int64_t extent) { return CeilDiv(CeilDiv(extent, tiles), 16) * 16; };
  Tiling tiling{p.m, p.n, 1, 1};
  if (p.m >= p.n) {
    tiling.rows = edge(p.m);
    tiling.row_tiles = CeilDiv(p.m, tiling.rows);
  } else {
    tiling.cols = edge(p.n);
    tiling.col_tiles = CeilDiv(p.n, tiling.cols);
  }
  return tiling;
}

// Elements of the operand's memory, all matrices of the batch that are not broadcast.
int64_t StoredElements(int64_t matrix, const std::vector<BatchDim>& batch,
                       int64_t BatchDim::* stride) {
  for (const BatchDim& dim : batch) matrix *= dim.*stride == 0 ? 1 : dim.extent;
  return matrix;
}

// A factor in the type that the product is computed in: the tensor itself, or a widened copy.
template <typename Traits>
const typename Traits::Accumulator* Widened(DType dtype, const void* data, int64_t count,
                                            Host& host) {
  using Accumulator = typename Traits::Accumulator;
  using Storage = typename Traits::Storage;
  if constexpr (std::is_same_v<Storage, Accumulator>) {
    return static_cast<const Accumulator*>(data);
  } else {
    auto* wide = static_cast<Accumulator*>(host.Allocate(count * sizeof(Accumulator)));
    if (wide == nullptr) return nullptr;
    const WidenLoop widen = GetElementwiseLoops().widen[static_cast<int>(dtype)];
    ParallelRanges(host, count, kMinElementsPerTask, [&](int64_t begin, int64_t end) {
      widen(static_cast<const Storage*>(data) + begin, wide + begin, end - begin);
    });
    return wide;
  }
}

Status OutOfMemory(const Product& p) {
  return Status(StatusCode::kResourceExhausted,
                "no memory to widen a product of " + std::to_string(p.m) + " x " +
                    std::to_string(p.n) + " x " + std::to_string(p.k) + " to float32");
}

template <typename Traits>
Status TypedGemm(DType dtype, const Product& p, double alpha, const void* a_data,
                 const void* b_data, void* c_data, const Epilogue& epilogue, Host& host) {
  using Storage = typename Traits::Storage;
  using Accumulator = typename Traits::Accumulator;
  constexpr bool kWidens = !std::is_same_v<Storage, Accumulator>;
  const BatchLoops loops = SplitBatch(p.batch);
  const int64_t outputs = p.outputs();
  const int64_t terms = p.terms();
  const int64_t flops = p.Flops(Traits::kComplex);
  const bool runs = flops > 0 && alpha != 0;
  auto* c = static_cast<Storage*>(c_data);

  const Accumulator* a = nullptr;
  const Accumulator* b = nullptr;
  if (runs) {
    a = Widened<Traits>(dtype, a_data, StoredElements(p.m * p.k, p.batch, &BatchDim::a_stride),
                        host);
    b = Widened<Traits>(dtype, b_data, StoredElements(p.k * p.n, p.batch, &BatchDim::b_stride),
                        host);
  }
  Accumulator* accumulator;
  if constexpr (kWidens) {
    const int64_t count = StoredElements(p.m * p.n, p.batch, &BatchDim::c_stride);
    accumulator = static_cast<Accumulator*>(host.Allocate(count * sizeof(Accumulator)));
  } else {
    accumulator = c;
  }
  if (accumulator == nullptr || (runs && (a == nullptr || b == nullptr))) return OutOfMemory(p);

  const EpilogueLoop epilogue_loop =
      GetElementwiseLoops()
          .epilogue[static_cast<int>(dtype)][static_cast<int>(epilogue.activation)];
  const int64_t ldc = std::max(p.c.row_stride, p.n);  // BLAS asks this of a single row too
  const Tiling tiling = ChooseTiling(p, outputs, flops, host.threads());
  const int64_t tiles = tiling.row_tiles * tiling.col_tiles;
  const int64_t flops_per_tile = std::max<int64_t>(1, flops / (outputs * tiles));

  const auto run_tile = [&](int64_t index) {
    const int64_t row = index % tiles / tiling.col_tiles * tiling.rows;
    const int64_t col = index % tiling.col_tiles * tiling.cols;
    const int64_t rows = std::min(tiling.rows, p.m - row);
    const int64_t cols = std::min(tiling.cols, p.n - col);
    const Offsets output = OffsetsAt(loops.outputs, index / tiles);
    const int64_t c_offset = output.c + row * ldc + col;
    if (runs) {
      const int64_t k_step = rows * cols <= kSmallTile ? kLongestSum : p.k;
      Accumulator beta(0);
      for (int64_t term = 0; term < terms; ++term) {
        const Offsets offsets = OffsetsAt(loops.terms, term);
        for (int64_t k = 0; k < p.k; k += k_step) {
          const MatrixProduct product{rows, cols, std::min(k_step, p.k - k), p.a, p.b, ldc};
          MultiplyAdd(product, Accumulator(alpha),
                      a + output.a + offsets.a + row * p.a.row_stride + k * p.a.col_stride,
                      b + output.b + offsets.b + col * p.b.col_stride + k * p.b.row_stride, beta,
                      accumulator + c_offset);
          beta = Accumulator(1);
        }
      }
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        std::fill_n(accumulator + c_offset + i * ldc, cols, Accumulator(0));
      }
    }
    if (kWidens || !epilogue.empty()) {
      const auto* bias = static_cast<const Storage*>(epilogue.bias);
      auto* z = static_cast<Storage*>(epilogue.z);
      epilogue_loop(accumulator + c_offset, bias ? bias + col : nullptr, z ? z + c_offset : nullptr,
                    c + c_offset, rows, cols, ldc);
    }
  };
  ParallelRanges(host, outputs * tiles, CeilDiv(kMinFlopsPerTask, flops_per_tile),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t index = begin; index < end; ++index) run_tile(index);
                 });
  return Status();
}

}  // namespace

Status Gemm(DType dtype, const Product& product, double alpha, const void* a, const void* b,
            void* c, const Epilogue& epilogue, Host& host) {
  if (product.m == 0 || product.n == 0 || product.outputs() == 0) return Status();
  if (!GetOpenBlas().status.ok()) return GetOpenBlas().status;
  if (product.c.col_stride != 1) {
    return Gemm(dtype, Transposed(product), alpha, b, a, c, epilogue, host);
  }
  return VisitDType(dtype, [&](auto traits) {
    return TypedGemm<decltype(traits)>(dtype, product, alpha, a, b, c, epilogue, host);
  });
}

}  // namespace stopgrad::cpu
