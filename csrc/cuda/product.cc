#include "cuda/product.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/selection.h"
#include "cuda/elementwise.h"
#include "cuda/filling.h"
#include "cuda/matmul.h"
#include "cuda/memory.h"
#include "cuda/status.h"

namespace stopgrad::cuda {

namespace {

// More matrices cublasLt does not take at a time.
constexpr int64_t kMostBatch = 65535;
// It is not told how a bias is aligned, and may read so many bytes of it at once.
constexpr uintptr_t kBiasAlignment = 16;

const char* At(const void* data, int64_t elements, DType dtype) {
  return static_cast<const char*>(data) + elements * SizeOf(dtype);
}
char* At(void* data, int64_t elements, DType dtype) {
  return static_cast<char*>(data) + elements * SizeOf(dtype);
}

// Steps through all positions of the batch dimensions. `function` gets the offsets of a, b and c.
template <typename Function>
Status ForEachMatrix(const std::vector<BatchDim>& dims, Function&& function) {
  std::vector<int64_t> position(dims.size(), 0);
  BatchDim offset{0, 0, 0, 0};
  while (true) {
    if (Status status = function(offset); !status.ok()) return status;
    size_t d = dims.size();
    for (; d-- > 0;) {
      const BatchDim& dim = dims[d];
      const bool wraps = ++position[d] == dim.extent;
      const int64_t steps = wraps ? 1 - dim.extent : 1;
      if (wraps) position[d] = 0;
      offset.a_stride += steps * dim.a_stride;
      offset.b_stride += steps * dim.b_stride;
      offset.c_stride += steps * dim.c_stride;
      if (!wraps) break;
    }
    if (d == static_cast<size_t>(-1)) return Status();
  }
}

// One dimension where two lie seamlessly behind each other in all three matrices.
std::vector<BatchDim> Join(const std::vector<BatchDim>& dims) {
  std::vector<BatchDim> joined;
  for (const BatchDim& inner : dims) {
    if (!joined.empty()) {
      BatchDim& outer = joined.back();
      if (outer.a_stride == inner.extent * inner.a_stride &&
          outer.b_stride == inner.extent * inner.b_stride &&
          outer.c_stride == inner.extent * inner.c_stride) {
        outer = {outer.extent * inner.extent, inner.a_stride, inner.b_stride, inner.c_stride};
        continue;
      }
    }
    joined.push_back(inner);
  }
  return joined;
}

// --- A matrix as cublasLt takes it -------------------------------------------------------------
// Column by column in memory, and what is to be done with it to get the view's matrix.
struct ColumnMajor {
  bool transposed;  // memory holds the matrix's transpose
  int64_t ld;
};

// False where the view is of no such matrix.
bool AsColumnMajor(const MatrixView& view, int64_t rows, int64_t cols, bool prefer_transposed,
                   ColumnMajor* result) {
  if (view.by_list()) return false;
  // A direction of one element has any stride.
  const bool by_rows = view.col_stride == 1 || cols == 1;
  const bool by_columns = view.row_stride == 1 || rows == 1;
  if (by_rows && (prefer_transposed || !by_columns)) {
    *result = {true, std::max(rows == 1 ? 0 : view.row_stride, cols)};
  } else if (by_columns) {
    *result = {false, std::max(cols == 1 ? 0 : view.col_stride, rows)};
  } else {
    return false;
  }
  // Rows that overlap, or stand still, are no matrix that cublasLt knows.
  const int64_t stride = result->transposed ? view.row_stride : view.col_stride;
  const int64_t count = result->transposed ? rows : cols;
  return count == 1 || stride >= (result->transposed ? cols : rows);
}

// The operation that makes of the memory the view's matrix, or its transpose if `transpose` says
// so. cublasLt conjugates only what it transposes.
bool OperationFor(const ColumnMajor& memory, bool conjugate, bool transpose,
                  cublasOperation_t* operation) {
  const bool transposes = memory.transposed != transpose;
  if (conjugate && !transposes) return false;
  *operation = !transposes ? CUBLAS_OP_N : conjugate ? CUBLAS_OP_C : CUBLAS_OP_T;
  return true;
}

bool AsFactor(const MatrixView& view, int64_t rows, int64_t cols, bool transpose,
              MatmulFactor* factor) {
  // Where either reading would do, the one that allows conjugation.
  const bool prefer_transposed = view.conjugate ? !transpose : transpose;
  ColumnMajor memory;
  if (!AsColumnMajor(view, rows, cols, prefer_transposed, &memory)) return false;
  factor->ld = memory.ld;
  return OperationFor(memory, view.conjugate, transpose, &factor->operation);
}

// Bias and activation of a product that is in C, all of it.
Status EnqueueBiasActivation(DType dtype, const Product& product, void* c, const Epilogue& e,
                             Device& device) {
  if (e.keeps_product()) return Status();
  const int64_t rows = product.m * product.outputs();
  return Enqueue(BiasActivation{dtype, e.activation, rows, product.n, c, e.bias, e.z, c}, device);
}

// --- One product -------------------------------------------------------------------------------
class ProductRunner {
 public:
  ProductRunner(DType dtype, double alpha, const Epilogue& epilogue, bool repeats, Device& device)
      : dtype_(dtype), alpha_(alpha), epilogue_(epilogue), repeats_(repeats), device_(device) {}

  Status Run(Product product, const void* a, const void* b, void* c) {
    Status status;
    if (!AddsTerms(product)) status = FoldSums(&product, &a, &b);
    if (!status.ok()) return status;
    product.batch = Join(product.batch);
    // Where C is stored by columns, C^T = B^T A^T is stored by rows.
    if (!IsByRows(product.c, product.m, product.n) &&
        (product.c.row_stride == 1 || product.m == 1)) {
      product = Transposed(product);
      std::swap(a, b);
      sums_first_ = true;
    }
    MatmulFactor factor;
    const bool takes_a = AsFactor(product.a, product.m, product.k, /*transpose=*/true, &factor);
    const bool takes_b = AsFactor(product.b, product.k, product.n, /*transpose=*/true, &factor);
    const bool takes_c = IsByRows(product.c, product.m, product.n);
    const Copies due{product.k, product.n, !takes_a, !takes_b, !takes_c};
    const bool has_epilogue = !epilogue_.keeps_product();
    if (const auto filling = FillingThatPays(dtype_, product, {a, b, c}, due, has_epilogue,
                                             device_.filling_costs())) {
      // All at once, so that nothing is begun where there is not enough. Which product runs may
      // depend on that, but not where results must be the same everywhere.
      const int64_t bytes = BytesOf(*filling, dtype_, product);
      const bool must_fill = device_.deterministic();
      reserved_ =
          static_cast<char*>(must_fill ? device_.Allocate(bytes) : device_.TryAllocate(bytes));
      if (reserved_ != nullptr) return RunWithCopies(*filling, product, a, b, c);
      if (must_fill) return OutOfMemory("copies of a product's matrices", bytes);
    }
    return RunWithCopies(due, product, a, b, c);
  }

 private:
  static bool IsByRows(const MatrixView& view, int64_t rows, int64_t cols) {
    return !view.by_list() && (view.col_stride == 1 || cols == 1) &&
           (view.row_stride >= cols || rows == 1);
  }

  Status Allocate(int64_t elements, const char* what, void** memory) {
    const int64_t bytes = elements * SizeOf(dtype_);
    if (reserved_ != nullptr) {
      *memory = reserved_;
      reserved_ += RoundUp(bytes, kBlockBytes);
      return Status();
    }
    *memory = device_.Allocate(bytes);
    return *memory != nullptr ? Status() : OutOfMemory(what, bytes);
  }

  struct Extents {
    int64_t rows = 0;
    int64_t cols = 0;
  };

  // Matrices of a batch that is copied: along each dimension, how far apart they are in the source
  // and in the copy.
  struct CopyDim {
    int64_t extent;
    int64_t from;
    int64_t to;
  };

  // One launch for all of the innermost dimension.
  Status CopyMatrices(const void* from, const MatrixView& from_view, void* to,
                      const MatrixView& to_view, const Extents& extents, const Extents& filled,
                      const std::vector<CopyDim>& dims) {
    Copy copy{};
    copy.dtype = dtype_;
    copy.rows = extents.rows;
    copy.cols = extents.cols;
    copy.filled_rows = filled.rows;
    copy.filled_cols = filled.cols;
    copy.from_view = from_view;
    copy.to_view = to_view;
    copy.count = 1;
    std::vector<BatchDim> outer;
    for (const CopyDim& dim : dims) outer.push_back({dim.extent, dim.from, dim.to, 0});
    if (!outer.empty()) {
      copy.count = outer.back().extent;
      copy.from_stride = outer.back().a_stride;
      copy.to_stride = outer.back().b_stride;
      outer.pop_back();
    }
    return ForEachMatrix(outer, [&](const BatchDim& offset) {
      copy.from = At(from, offset.a_stride, dtype_);
      copy.to = At(to, offset.b_stride, dtype_);
      return Enqueue(copy, device_);
    });
  }

  // Gives the dimensions along which a matrix moves the strides of a dense batch, in which one
  // position takes `size` elements, and adds them to `moved`. Returns how many positions there are.
  static int64_t MakeDense(int64_t BatchDim::* stride, int64_t size, std::vector<BatchDim>* dims,
                           std::vector<CopyDim>* moved) {
    int64_t count = 1;
    for (size_t d = dims->size(); d-- > 0;) {
      BatchDim& dim = (*dims)[d];
      if (dim.*stride == 0) continue;
      moved->insert(moved->begin(), {dim.extent, dim.*stride, size * count});
      dim.*stride = size * count;
      count *= dim.extent;
    }
    return count;
  }

  // A factor, and where k is in it.
  struct Side {
    const void** data;
    MatrixView* view;
    int64_t rows, cols;
    int64_t BatchDim::* stride;
    bool k_is_rows;
  };
  static Side SideA(Product* p, const void** data) {
    return {data, &p->a, p->m, p->k, &BatchDim::a_stride, false};
  }
  static Side SideB(Product* p, const void** data) {
    return {data, &p->b, p->k, p->n, &BatchDim::b_stride, true};
  }

  // Copies a factor to where it is dense, in the direction in which it lies, but for what aligns
  // its rows: its terms along `sums` behind each other, so that they are one matrix, and those
  // matrices along `kept`. Zeros behind its rows and columns make so many of them as `filled` says.
  Status Densify(const Side& side, const std::vector<BatchDim>& sums, std::vector<BatchDim>* kept,
                 const Extents& filled) {
    int64_t terms = 1;
    for (const BatchDim& dim : sums) terms *= dim.extent;
    const bool by_columns = LiesByColumns(*side.view);
    const int64_t rows = std::max(filled.rows, side.k_is_rows ? terms * side.rows : side.rows);
    const int64_t cols = std::max(filled.cols, side.k_is_rows ? side.cols : terms * side.cols);
    const int64_t ld = RoundUp(by_columns ? rows : cols, kRowBytes / SizeOf(dtype_));
    const MatrixView dense = by_columns ? MatrixView{1, ld} : MatrixView{ld, 1};
    const int64_t size = ld * (by_columns ? cols : rows);
    std::vector<CopyDim> dims;
    const int64_t count = MakeDense(side.stride, size, kept, &dims);
    int64_t step =
        (side.k_is_rows ? side.rows * dense.row_stride : side.cols * dense.col_stride) * terms;
    for (const BatchDim& dim : sums) {
      step /= dim.extent;
      dims.push_back({dim.extent, dim.*side.stride, step});
    }
    void* copy = nullptr;
    Status status = Allocate(count * size, "a copy of a factor", &copy);
    if (!status.ok()) return status;
    status =
        CopyMatrices(*side.data, *side.view, copy, dense, {side.rows, side.cols}, filled, dims);
    *side.view = dense;
    *side.data = copy;
    return status;
  }

  // Whether the terms of a sum are added to C one after the other, and not made one product by
  // copying the factors: where C is less to move than they are. In 16 bits each addition would
  // round.
  bool AddsTerms(const Product& product) const {
    if (SizeOf(dtype_) == 2 || !epilogue_.keeps_product()) return false;
    // What an H100 moves in the five microseconds that a small product takes at least.
    constexpr int64_t kBytesPerProduct = 15 << 20;
    int64_t products = 1, matrices_a = 1, matrices_b = 1, matrices_c = 1;
    for (const BatchDim& dim : product.batch) {
      if (dim.sums()) products *= dim.extent;
      // Copied as often as they are different, and for each term.
      if (dim.sums() || dim.a_stride != 0) matrices_a *= dim.extent;
      if (dim.sums() || dim.b_stride != 0) matrices_b *= dim.extent;
      if (!dim.sums()) matrices_c *= dim.extent;
    }
    const int64_t copied = matrices_a * product.m * product.k + matrices_b * product.k * product.n;
    const int64_t added = products * matrices_c * product.m * product.n;
    // Each is read and written.
    return products * kBytesPerProduct + 2 * added * SizeOf(dtype_) < 2 * copied * SizeOf(dtype_);
  }

  // Makes dimensions that sum a part of k: both factors are copied so that the terms lie behind
  // each other. One product then adds in the accumulator what several would round to the dtype.
  Status FoldSums(Product* product, const void** a, const void** b) {
    std::vector<BatchDim> kept, sums;
    int64_t terms = 1;
    for (const BatchDim& dim : product->batch) {
      (dim.sums() ? sums : kept).push_back(dim);
      if (dim.sums()) terms *= dim.extent;
    }
    if (sums.empty()) return Status();
    for (const Side& side : {SideA(product, a), SideB(product, b)}) {
      if (Status status = Densify(side, sums, &kept, {}); !status.ok()) return status;
    }
    product->k *= terms;
    product->batch = kept;
    return Status();
  }

  Status RunWithCopies(const Copies& copies, const Product& wanted, const void* a, const void* b,
                       void* c) {
    Product product = wanted;
    product.k = copies.k;
    product.n = copies.n;
    const void *factor_a = a, *factor_b = b;
    Status status;
    if (copies.a) {
      Side side = SideA(&product, &factor_a);
      side.cols = wanted.k;
      status = Densify(side, {}, &product.batch, {product.m, product.k});
    }
    if (status.ok() && copies.b) {
      Side side = SideB(&product, &factor_b);
      side.rows = wanted.k;
      side.cols = wanted.n;
      status = Densify(side, {}, &product.batch, {product.k, product.n});
    }
    if (!status.ok()) return status;
    if (!copies.c) return RunDense(product, factor_a, factor_b, c);
    if (product.n == wanted.n) return RunAndScatter(product, factor_a, factor_b, c, wanted.n);
    // An epilogue has as many columns as C.
    ProductRunner bare(dtype_, alpha_, Epilogue(), repeats_, device_);
    bare.reserved_ = reserved_;
    status = bare.RunAndScatter(product, factor_a, factor_b, c, wanted.n);
    return status.ok() ? Finish(wanted, a, b, c) : status;
  }

  // The epilogue of a product that is in C, which is dense where there is a bias or an activation.
  Status Finish(const Product& product, const void* a, const void* b, void* c) const {
    const Epilogue& e = epilogue_;
    if (e.column_sums_of_b != nullptr) {
      DyPass sums = SumsOfColumns(product, a, b);
      sums.dbias = e.column_sums_of_b;
      return Enqueue(sums, device_);
    }
    return EnqueueBiasActivation(dtype_, product, c, e, device_);
  }

  // Of the factor that the caller has as B, or of its copy.
  DyPass SumsOfColumns(const Product& product, const void* a, const void* b) const {
    static const Selection all;
    DyPass pass{};
    pass.dtype = dtype_;
    pass.activation = Activation::kLinear;
    pass.rows = product.k;
    pass.cols = pass.bias_cols = sums_first_ ? product.m : product.n;
    // Not cublasLt's ld, which is another number where there is one column.
    pass.row_stride = sums_first_ ? product.a.col_stride : product.b.row_stride;
    pass.dy = sums_first_ ? At(a, product.a.offset, dtype_) : At(b, product.b.offset, dtype_);
    pass.bias_scale = 1;
    pass.bias_region = &all;
    return pass;
  }

  // Copies the first `cols` columns to C.
  Status RunAndScatter(Product product, const void* a, const void* b, void* c, int64_t cols) {
    const MatrixView to = product.c;
    const int64_t size = product.m * product.n;
    std::vector<CopyDim> dims;
    const int64_t count = MakeDense(&BatchDim::c_stride, size, &product.batch, &dims);
    for (CopyDim& dim : dims) std::swap(dim.from, dim.to);
    void* dense = nullptr;
    Status status = Allocate(count * size, "a product before it is scattered", &dense);
    if (!status.ok()) return status;
    product.c = {product.n, 1};
    status = RunDense(product, a, b, dense);
    if (!status.ok()) return status;
    return CopyMatrices(dense, product.c, c, to, {product.m, cols}, {}, dims);
  }

  // Row by row, Y = A B is column by column Y^T = B^T A^T: cublasLt's first factor is B.
  Status RunDense(const Product& product, const void* a, const void* b, void* c) {
    Matmul matmul{};
    matmul.dtype = dtype_;
    matmul.m = product.n;
    matmul.n = product.m;
    matmul.k = product.k;
    matmul.alpha = alpha_;
    matmul.repeats = repeats_;
    if (!AsFactor(product.b, product.k, product.n, /*transpose=*/true, &matmul.a) ||
        !AsFactor(product.a, product.m, product.k, /*transpose=*/true, &matmul.b)) {
      return Status(StatusCode::kInternal, "a factor's copy is not dense");
    }
    matmul.ldd = std::max(product.m == 1 ? 0 : product.c.row_stride, product.n);
    // Dimensions that sum go outside: the first term of each C is written, the others are added.
    std::vector<BatchDim> outer = product.batch;
    const auto kept = std::stable_partition(outer.begin(), outer.end(),
                                            [](const BatchDim& dim) { return dim.sums(); });
    // One dimension is the batch of a call: the longest one, or where our kernels go over the
    // results the innermost, along which those are dense.
    BatchDim inner{1, 0, 0, 0};
    if (kept != outer.end()) {
      auto inside = outer.end() - 1;
      if (epilogue_.keeps_product()) {
        inside = std::max_element(kept, outer.end(), [](const BatchDim& x, const BatchDim& y) {
          return x.extent < y.extent;
        });
      }
      inner = *inside;
      outer.erase(inside);
    }
    matmul.a.stride = inner.b_stride;
    matmul.b.stride = inner.a_stride;
    matmul.stride_d = inner.c_stride;
    int64_t calls_left = 1;  // that write a first term
    for (const BatchDim& dim : outer) calls_left *= dim.sums() ? 1 : dim.extent;
    return ForEachMatrix(outer, [&](BatchDim offset) {
      matmul.beta = calls_left-- > 0 ? 0 : 1;
      Status status;
      for (int64_t done = 0; done < inner.extent && status.ok(); done += kMostBatch) {
        matmul.batch = std::min(kMostBatch, inner.extent - done);
        matmul.a.data = At(b, product.b.offset + offset.b_stride, dtype_);
        matmul.b.data = At(a, product.a.offset + offset.a_stride, dtype_);
        matmul.d = At(c, product.c.offset + offset.c_stride, dtype_);
        status = Enqueue(matmul, EpilogueOf(product, a, b, matmul, offset), device_);
        offset.a_stride += kMostBatch * inner.a_stride;
        offset.b_stride += kMostBatch * inner.b_stride;
        offset.c_stride += kMostBatch * inner.c_stride;
      }
      return status;
    });
  }

  MatmulEpilogue EpilogueOf(const Product& product, const void* a, const void* b,
                            const Matmul& matmul, const BatchDim& offset) const {
    MatmulEpilogue result;
    const Epilogue& e = epilogue_;
    if (e.column_sums_of_b != nullptr) {
      result.bias_gradient = e.column_sums_of_b;
      DyPass pass = SumsOfColumns(product, a, b);
      const auto sum = [pass, &device = device_](const MatmulOutputs& outputs) mutable {
        pass.dbias = outputs.bias;
        return Enqueue(pass, device);
      };
      result.ways = {{sums_first_ ? CUBLASLT_EPILOGUE_BGRADB : CUBLASLT_EPILOGUE_BGRADA},
                     {CUBLASLT_EPILOGUE_DEFAULT, false, sum}};
      return result;
    }
    if (e.keeps_product()) return result;
    result.bias = e.bias;
    if (e.z != nullptr) {
      result.aux = At(e.z, product.c.offset + offset.c_stride, dtype_);
      result.aux_stride = matmul.stride_d;
    }
    BiasActivation work{dtype_,  e.activation, matmul.n * matmul.batch, matmul.m, nullptr, nullptr,
                        nullptr, nullptr};
    // Where z is kept, the product is written there, with bias or without, and y is made of it.
    const auto finish = [&](const void* bias) {
      work.bias = bias;
      return [work, &device = device_](const MatmulOutputs& outputs) mutable {
        work.x = outputs.aux != nullptr ? outputs.aux : outputs.d;
        work.z = work.bias != nullptr ? outputs.aux : nullptr;
        work.y = outputs.d;
        return Enqueue(work, device);
      };
    };
    const bool keeps_z = e.z != nullptr;
    result.ways.clear();
    const cublasLtEpilogue_t fused = FusedEpilogue(matmul);
    const bool takes_bias = reinterpret_cast<uintptr_t>(e.bias) % kBiasAlignment == 0;
    if (fused != CUBLASLT_EPILOGUE_DEFAULT && takes_bias) result.ways.push_back({fused});
    if (keeps_z && e.bias != nullptr && takes_bias) {
      result.ways.push_back({CUBLASLT_EPILOGUE_BIAS, true, finish(nullptr)});
    }
    result.ways.push_back({CUBLASLT_EPILOGUE_DEFAULT, keeps_z, finish(e.bias)});
    return result;
  }

  // What cublasLt can do to a result, and does right. Its relu makes 0 of a NaN with some
  // algorithms (13.1, on an H200). Its gelu is the tanh form, by an approximation whose error is up
  // to 3.7e-6 in the tail: less than a unit in the last place of bfloat16, and 13 of half. Its
  // auxiliary output is z for gelu alone, and has rows of a multiple of 8.
  cublasLtEpilogue_t FusedEpilogue(const Matmul& matmul) const {
    struct Row {
      Activation activation;
      bool bias;
      bool z;
      cublasLtEpilogue_t epilogue;
    };
    static constexpr Row kRows[] = {
        {Activation::kLinear, true, false, CUBLASLT_EPILOGUE_BIAS},
        {Activation::kGeluTanh, false, false, CUBLASLT_EPILOGUE_GELU},
        {Activation::kGeluTanh, true, false, CUBLASLT_EPILOGUE_GELU_BIAS},
        {Activation::kGeluTanh, false, true, CUBLASLT_EPILOGUE_GELU_AUX},
        {Activation::kGeluTanh, true, true, CUBLASLT_EPILOGUE_GELU_AUX_BIAS},
    };
    const Epilogue& e = epilogue_;
    if (e.activation == Activation::kGeluTanh && dtype_ != DType::kBFloat16) {
      return CUBLASLT_EPILOGUE_DEFAULT;
    }
    if (e.z != nullptr && (matmul.ldd % 8 != 0 || matmul.stride_d % 8 != 0)) {
      return CUBLASLT_EPILOGUE_DEFAULT;
    }
    for (const Row& row : kRows) {
      if (row.activation == e.activation && row.bias == (e.bias != nullptr) &&
          row.z == (e.z != nullptr)) {
        return row.epilogue;
      }
    }
    return CUBLASLT_EPILOGUE_DEFAULT;
  }

  DType dtype_;
  double alpha_;
  Epilogue epilogue_;
  bool repeats_;
  Device& device_;
  bool sums_first_ = false;   // B is the first factor now, of the transposed product
  char* reserved_ = nullptr;  // memory for all copies
};

// A product of which nothing is left but zeros, and what becomes of them.
Status EnqueueEmpty(DType dtype, const Product& product, void* c, const Epilogue& epilogue,
                    Device& device) {
  // C is dense: gradients without products are zeros before.
  const int64_t elements = product.m * product.outputs() * product.n;
  Status status = EnqueueZeros(c, elements * SizeOf(dtype), device);
  return status.ok() ? EnqueueBiasActivation(dtype, product, c, epilogue, device) : status;
}

}  // namespace

bool CanSumColumns(const Product& product) {
  return product.batch.empty() && !product.b.by_list() && product.b.col_stride == 1 &&
         !product.b.conjugate;
}

Status Enqueue(DType dtype, const Product& product, double alpha, const void* a, const void* b,
               void* c, const Epilogue& epilogue, bool repeats, Device& device) {
  if (product.m == 0 || product.n == 0 || product.outputs() == 0) return Status();
  if (product.k == 0 || product.terms() == 0) {
    return EnqueueEmpty(dtype, product, c, epilogue, device);
  }
  return ProductRunner(dtype, alpha, epilogue, repeats, device).Run(product, a, b, c);
}

}  // namespace stopgrad::cuda
