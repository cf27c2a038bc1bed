// cublasLt on the host's memory: products in float64, one after the other. It is as strict as the
// documentation of the real one, and proposes three algorithms, of which the first is slow and the
// last one fails when it runs.
#include <cublasLt.h>

#include <chrono>
#include <complex>
#include <cstdint>
#include <cstring>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "core/float16.h"

namespace {

using stopgrad::BFloat16;
using stopgrad::Half;
using Number = std::complex<double>;

constexpr uint64_t kMark = 0x57094ad0;
constexpr int kAlgorithms = 3;

// What tests read and set, through the functions at the end.
int64_t calls_of_algorithm[kAlgorithms];
int64_t fused_calls;
enum Slow { kNone, kFused, kSeparate };  // which products, by their epilogue
Slow slow = kNone;
int failing_status;

// Attributes by their number; all fit into 8 bytes.
struct Attributes {
  std::map<int, uint64_t> values;

  cublasStatus_t Set(int attribute, const void* data, size_t bytes) {
    if (bytes > 8) return CUBLAS_STATUS_INVALID_VALUE;
    uint64_t value = 0;
    std::memcpy(&value, data, bytes);
    values[attribute] = value;
    return CUBLAS_STATUS_SUCCESS;
  }
  uint64_t Get(int attribute, uint64_t otherwise = 0) const {
    const auto found = values.find(attribute);
    return found == values.end() ? otherwise : found->second;
  }
};
struct Product : Attributes {
  cublasComputeType_t compute;
  cudaDataType_t scale;
};
struct Layout : Attributes {
  cudaDataType_t type;
  int64_t rows, cols, ld;

  int64_t batch() const { return Get(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 1); }
  int64_t stride() const { return Get(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET); }
};

size_t SizeOf(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_16F:
    case CUDA_R_16BF:
      return 2;
    case CUDA_R_32F:
      return 4;
    case CUDA_C_64F:
      return 16;
    default:
      return 8;
  }
}

Number Load(cudaDataType_t type, const void* data, int64_t i) {
  switch (type) {
    case CUDA_R_16F:
      return stopgrad::ToFloat(static_cast<const Half*>(data)[i]);
    case CUDA_R_16BF:
      return stopgrad::ToFloat(static_cast<const BFloat16*>(data)[i]);
    case CUDA_R_32F:
      return static_cast<const float*>(data)[i];
    case CUDA_R_64F:
      return static_cast<const double*>(data)[i];
    case CUDA_C_32F:
      return static_cast<const std::complex<float>*>(data)[i];
    default:
      return static_cast<const std::complex<double>*>(data)[i];
  }
}

void Store(cudaDataType_t type, Number value, void* data, int64_t i) {
  switch (type) {
    case CUDA_R_16F:
      return stopgrad::FromFloat(static_cast<float>(value.real()), static_cast<Half*>(data) + i);
    case CUDA_R_16BF:
      return stopgrad::FromFloat(static_cast<float>(value.real()),
                                 static_cast<BFloat16*>(data) + i);
    case CUDA_R_32F:
      static_cast<float*>(data)[i] = static_cast<float>(value.real());
      return;
    case CUDA_R_64F:
      static_cast<double*>(data)[i] = value.real();
      return;
    case CUDA_C_32F:
      static_cast<std::complex<float>*>(data)[i] = std::complex<float>(value);
      return;
    default:
      static_cast<std::complex<double>*>(data)[i] = value;
  }
}

template <typename Object, typename Opaque>
Object& As(Opaque* opaque) {
  return *reinterpret_cast<Object*>(opaque);
}
template <typename Object, typename Opaque>
const Object& As(const Opaque* opaque) {
  return *reinterpret_cast<const Object*>(opaque);
}

struct Operation {
  cublasOperation_t a, b;
  int epilogue;
};

Operation OperationOf(const Product& product) {
  return {static_cast<cublasOperation_t>(product.Get(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_N)),
          static_cast<cublasOperation_t>(product.Get(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N)),
          static_cast<int>(product.Get(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT))};
}

// What the documentation demands of a problem.
cublasStatus_t Check(const Product& product, const Layout& a, const Layout& b, const Layout& d) {
  const Operation op = OperationOf(product);
  const bool transposes_a = op.a != CUBLAS_OP_N, transposes_b = op.b != CUBLAS_OP_N;
  const int64_t m = transposes_a ? a.cols : a.rows, k = transposes_a ? a.rows : a.cols;
  const int64_t k_of_b = transposes_b ? b.cols : b.rows, n = transposes_b ? b.rows : b.cols;
  if (m != d.rows || n != d.cols || k != k_of_b) return CUBLAS_STATUS_INVALID_VALUE;
  for (const Layout* layout : {&a, &b, &d}) {
    if (layout->rows < 1 || layout->cols < 1 || layout->ld < layout->rows) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (layout->type != d.type || layout->batch() != d.batch()) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool is_complex = d.type == CUDA_C_32F || d.type == CUDA_C_64F;
  if (!is_complex && (op.a == CUBLAS_OP_C || op.b == CUBLAS_OP_C)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (d.batch() > 65535) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (op.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_SUCCESS;
  if (is_complex || d.type == CUDA_R_64F) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool has_bias =
      op.epilogue & (CUBLASLT_EPILOGUE_BIAS | CUBLASLT_EPILOGUE_BGRADA | CUBLASLT_EPILOGUE_BGRADB);
  if (has_bias && product.Get(CUBLASLT_MATMUL_DESC_BIAS_POINTER) == 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (op.epilogue & 128) {
    const auto ld = static_cast<int64_t>(product.Get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD));
    if (ld % 8 != 0 || ld < d.rows ||
        product.Get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE) % 8 != 0 ||
        product.Get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER) == 0) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

double Gelu(double z) {
  return 0.5 * z * (1 + std::tanh(0.79788456080286535588 * (z + 0.044715 * z * z * z)));
}

// op(X), column by column.
struct Matrix {
  int64_t rows, cols;
  std::vector<Number> values;

  const Number* Column(int64_t j) const { return &values[j * rows]; }
};

Matrix Read(const void* data, const Layout& layout, cublasOperation_t op, int64_t index) {
  const bool transposes = op != CUBLAS_OP_N;
  Matrix matrix{layout.rows, layout.cols, {}};
  if (transposes) std::swap(matrix.rows, matrix.cols);
  matrix.values.resize(matrix.rows * matrix.cols);
  for (int64_t j = 0; j < layout.cols; ++j) {
    for (int64_t i = 0; i < layout.rows; ++i) {
      const Number value = Load(layout.type, data, index * layout.stride() + i + j * layout.ld);
      matrix.values[transposes ? j + i * matrix.rows : i + j * matrix.rows] =
          op == CUBLAS_OP_C ? std::conj(value) : value;
    }
  }
  return matrix;
}

void Multiply(const Matrix& a, const Matrix& b, int64_t j, std::vector<Number>* column) {
  column->assign(a.rows, 0);
  for (int64_t l = 0; l < a.cols; ++l) {
    const Number factor = b.Column(j)[l];
    for (int64_t i = 0; i < a.rows; ++i) {
      const Number& x = a.Column(l)[i];
      // As real numbers, without a look for infinities.
      (*column)[i] += Number(x.real() * factor.real() - x.imag() * factor.imag(),
                             x.real() * factor.imag() + x.imag() * factor.real());
    }
  }
}

}  // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new int);
  return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion() { return 130000; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_ALLOC_FAILED ? "CUBLAS_STATUS_ALLOC_FAILED"
                                              : "CUBLAS_STATUS_EMULATED";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  auto* const product = new Product;
  product->compute = compute;
  product->scale = scale;
  *desc = reinterpret_cast<cublasLtMatmulDesc_t>(product);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete &As<Product>(desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* data, size_t bytes) {
  return As<Product>(desc).Set(attribute, data, bytes);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  auto* const made = new Layout;
  made->type = type;
  made->rows = static_cast<int64_t>(rows);
  made->cols = static_cast<int64_t>(cols);
  made->ld = ld;
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(made);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete &As<Layout>(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* data, size_t bytes) {
  return As<Layout>(layout).Set(attribute, data, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Attributes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete &As<Attributes>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* data, size_t bytes) {
  return As<Attributes>(preference).Set(attribute, data, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t, int count,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  *found = 0;
  const cublasStatus_t status =
      Check(As<Product>(desc), As<Layout>(a), As<Layout>(b), As<Layout>(d));
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  for (; *found < count && *found < kAlgorithms; ++*found) {
    cublasLtMatmulHeuristicResult_t& result = results[*found];
    std::memset(static_cast<void*>(&result), 0, sizeof result);
    result.algo.data[0] = kMark;
    result.algo.data[1] = *found;
    result.workspaceSize = 1024 * *found;
    result.state = CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algorithm,
                                       cublasLtMatmulHeuristicResult_t* result) {
  if (algorithm->data[0] != kMark) return CUBLAS_STATUS_INVALID_VALUE;
  result->workspaceSize = 1024 * algorithm->data[1];
  return Check(As<Product>(desc), As<Layout>(a), As<Layout>(b), As<Layout>(d));
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a_data, cublasLtMatrixLayout_t a_layout,
                              const void* b_data, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c_data, cublasLtMatrixLayout_t, void* d_data,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t) {
  if (failing_status != 0) {
    const auto status = static_cast<cublasStatus_t>(failing_status);
    failing_status = 0;
    return status;
  }
  const Product& product = As<Product>(desc);
  const Layout &a = As<Layout>(a_layout), &b = As<Layout>(b_layout), &d = As<Layout>(d_layout);
  if (const cublasStatus_t status = Check(product, a, b, d); status != CUBLAS_STATUS_SUCCESS) {
    return status;
  }
  const auto index = static_cast<int>(algorithm->data[1]);
  if (algorithm->data[0] != kMark || workspace_bytes < size_t(1024) * index ||
      (index > 0 && workspace == nullptr)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (index == kAlgorithms - 1) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Operation op = OperationOf(product);
  // As a real one may, which then reads 16 bytes at a time.
  if (product.Get(CUBLASLT_MATMUL_DESC_BIAS_POINTER) % 16 != 0 &&
      op.epilogue & CUBLASLT_EPILOGUE_BIAS) {
    return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  const bool fused = op.epilogue != CUBLASLT_EPILOGUE_DEFAULT;
  ++calls_of_algorithm[index];
  fused_calls += fused;
  const int milliseconds = slow == (fused ? kFused : kSeparate) ? 8 : index == 0 ? 2 : 0;
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));

  const Number factor = Load(product.scale, alpha, 0), old = Load(product.scale, beta, 0);
  auto* const bias = reinterpret_cast<void*>(product.Get(CUBLASLT_MATMUL_DESC_BIAS_POINTER));
  auto* const aux = reinterpret_cast<void*>(product.Get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER));
  const int64_t aux_ld = product.Get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
  const int64_t aux_stride = product.Get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE);
  std::vector<Number> column;
  for (int64_t matrix = 0; matrix < d.batch(); ++matrix) {
    const Matrix read_a = Read(a_data, a, op.a, matrix), read_b = Read(b_data, b, op.b, matrix);
    for (int64_t j = 0; j < d.cols; ++j) {
      Multiply(read_a, read_b, j, &column);
      for (int64_t i = 0; i < d.rows; ++i) {
        Number value = factor.imag() == 0 ? factor.real() * column[i] : factor * column[i];
        const int64_t place = matrix * d.stride() + i + j * d.ld;
        if (old != Number(0)) value += old * Load(d.type, c_data, place);
        if (op.epilogue & CUBLASLT_EPILOGUE_BIAS) value += Load(d.type, bias, i);
        if (op.epilogue & 128) Store(d.type, value, aux, matrix * aux_stride + i + j * aux_ld);
        if (op.epilogue & CUBLASLT_EPILOGUE_GELU) value = Gelu(value.real());
        Store(d.type, value, d_data, place);
      }
    }
  }
  if (op.epilogue == CUBLASLT_EPILOGUE_BGRADA) {
    const Matrix read = Read(a_data, a, op.a, 0);
    for (int64_t i = 0; i < d.rows; ++i) {
      Number sum = 0;
      for (int64_t l = 0; l < read.cols; ++l) sum += read.Column(l)[i];
      Store(d.type, sum, bias, i);
    }
  }
  if (op.epilogue == CUBLASLT_EPILOGUE_BGRADB) {
    const Matrix read = Read(b_data, b, op.b, 0);
    for (int64_t j = 0; j < d.cols; ++j) {
      Number sum = 0;
      for (int64_t l = 0; l < read.rows; ++l) sum += read.Column(j)[l];
      Store(d.type, sum, bias, j);
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

// --- For the tests -----------------------------------------------------------------------------
int64_t emulated_calls(int algorithm) { return calls_of_algorithm[algorithm]; }
int64_t emulated_fused_calls() { return fused_calls; }
void emulated_make_slow(int which) { slow = static_cast<Slow>(which); }
void emulated_fail_next(int status) { failing_status = status; }

}  // extern "C"
