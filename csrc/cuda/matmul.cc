#include "cuda/matmul.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/choices.h"
#include "cuda/cublas_lt.h"
#include "cuda/device_kind.h"
#include "cuda/status.h"

namespace stopgrad::cuda {

namespace {

// A candidate is run for this long, in one go, so that the clock does not see the host's part; one
// that takes longer anyway, once.
constexpr double kMillisecondsPerCandidate = 0.2;

// The types of a dtype's matrices, sums and alpha.
struct Types {
  cudaDataType_t matrix;
  cudaDataType_t scale;
  cublasComputeType_t compute;
};

Types TypesOf(DType dtype, bool allows_tf32) {
  const cublasComputeType_t float32 =
      allows_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  switch (dtype) {
    case DType::kDouble:
      return {CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F};
    case DType::kHalf:
      return {CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F};
    case DType::kBFloat16:
      return {CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F};
    case DType::kComplex64:
      return {CUDA_C_32F, CUDA_C_32F, float32};
    case DType::kComplex128:
      return {CUDA_C_64F, CUDA_C_64F, CUBLAS_COMPUTE_64F};
    default:
      return {CUDA_R_32F, CUDA_R_32F, float32};
  }
}

// A number as cublasLt reads alpha and beta: by the scale type, complex ones in two parts.
struct Scalar {
  alignas(16) char bytes[16] = {};

  Scalar(double value, cudaDataType_t type) {
    if (type == CUDA_R_64F || type == CUDA_C_64F) {
      std::memcpy(bytes, &value, sizeof value);
    } else {
      const float narrow = static_cast<float>(value);
      std::memcpy(bytes, &narrow, sizeof narrow);
    }
  }
};

// --- One product on one device, while its algorithm is chosen and when it runs -----------------
class Runner {
 public:
  Runner(const CublasLt& lt, cublasLtHandle_t handle, const DeviceKind& kind, const Matmul& matmul,
         const MatmulEpilogue& epilogue, Device& device)
      : lt_(lt),
        handle_(handle),
        kind_(kind),
        matmul_(matmul),
        epilogue_(epilogue),
        device_(device),
        types_(TypesOf(matmul.dtype, device.allows_tf32())) {}

  // The choice by the clock, or without a search cublasLt's first proposal for the first way it
  // knows.
  Status Choose(const std::optional<Search>& search, std::shared_ptr<Choice>* choice) {
    const int most_candidates = search ? search->candidates : 1;
    std::vector<std::vector<std::shared_ptr<Choice>>> proposals;
    for (size_t way = 0; way < epilogue_.ways.size(); ++way) {
      proposals.emplace_back();
      Status status = Propose(way, most_candidates, &proposals.back());
      if (!status.ok()) return status;
      if (!search && !proposals.back().empty()) break;
    }
    // The best of all ways come first: there may be no time for the others.
    std::vector<std::shared_ptr<Choice>> candidates;
    for (int i = 0; i < most_candidates; ++i) {
      for (const auto& of_way : proposals) {
        if (i < static_cast<int>(of_way.size())) candidates.push_back(of_way[i]);
      }
    }
    if (candidates.empty()) {
      return Status(StatusCode::kInternal, "cublasLtMatmulAlgoGetHeuristic: no algorithm");
    }
    *choice = candidates.front();
    if (!search || candidates.size() == 1) return Status();
    return ChooseByTime(candidates, search->milliseconds, choice);
  }

  // The choice of a file, if this library can still run it.
  std::shared_ptr<Choice> Restore(const SavedChoice& saved) {
    if (saved.way >= epilogue_.ways.size()) return nullptr;
    auto choice = std::make_shared<Choice>();
    choice->way = saved.way;
    choice->algorithm = saved.algorithm;
    if (!Describe(epilogue_.ways[saved.way], &choice->descriptors).ok()) return nullptr;
    const Descriptors& d = choice->descriptors;
    cublasLtMatmulHeuristicResult_t result{};
    if (lt_.AlgoCheck(handle_, d.product.get(), d.a.get(), d.b.get(), d.d.get(), d.d.get(),
                      &choice->algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > kind_.workspace_bytes()) {
      return nullptr;
    }
    choice->workspace_bytes = result.workspaceSize;
    return choice;
  }

  Status Run(Choice& choice, const MatmulOutputs& outputs, void* workspace) {
    const Scalar alpha(matmul_.alpha, types_.scale), beta(matmul_.beta, types_.scale);
    const MatmulWay& way = epilogue_.ways[choice.way];
    void* const d = way.writes_aux ? outputs.aux : outputs.d;
    {
      std::lock_guard<std::mutex> lock(choice.mutex);
      const Descriptors& of = choice.descriptors;
      Status status = SetPointers(way, of.product.get(), outputs);
      if (!status.ok()) return status;
      status = lt_.ToStatus(
          lt_.Matmul(handle_, of.product.get(), alpha.bytes, matmul_.a.data, of.a.get(),
                     matmul_.b.data, of.b.get(), beta.bytes, d, of.d.get(), d, of.d.get(),
                     &choice.algorithm, workspace, choice.workspace_bytes, device_.stream()),
          "cublasLtMatmul");
      if (!status.ok()) return status;
    }
    return way.then ? way.then(outputs) : Status();
  }

 private:
  template <typename Value>
  Status Set(cublasLtMatmulDesc_t object, cublasLtMatmulDescAttributes_t attribute,
             const Value& value) const {
    return lt_.ToStatus(lt_.DescSetAttribute(object, attribute, &value, sizeof value),
                        "cublasLtMatmulDescSetAttribute");
  }

  // Where the epilogue of a way reads and writes beside D.
  Status SetPointers(const MatmulWay& way, cublasLtMatmulDesc_t product,
                     const MatmulOutputs& outputs) const {
    if (way.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return Status();
    Status status;
    if (const void* bias = epilogue_.bias != nullptr ? epilogue_.bias : outputs.bias) {
      status = Set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
    if (status.ok() && HasAux(way)) {
      status = Set(product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, outputs.aux);
    }
    return status;
  }
  bool HasAux(const MatmulWay& way) const {
    return way.epilogue != CUBLASLT_EPILOGUE_DEFAULT && epilogue_.aux != nullptr && !way.writes_aux;
  }

  // Adds up to `count` of cublasLt's proposals for a way, best first; none where it cannot.
  Status Propose(size_t index, int count, std::vector<std::shared_ptr<Choice>>* candidates) {
    const MatmulWay& way = epilogue_.ways[index];
    const bool fused = way.epilogue != CUBLASLT_EPILOGUE_DEFAULT;
    const void* const d = way.writes_aux ? epilogue_.aux : matmul_.d;
    Descriptors descriptors;
    if (Status status = Describe(way, &descriptors); !status.ok()) return status;
    cublasLtMatmulPreference_t created = nullptr;
    Status status = lt_.ToStatus(lt_.PreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
    if (!status.ok()) return status;
    Owned<cublasLtMatmulPreference_t> preference(created, lt_.PreferenceDestroy);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      if (!status.ok()) return;
      status = lt_.ToStatus(
          lt_.PreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
          "cublasLtMatmulPreferenceSetAttribute");
    };
    if (SizeOf(matmul_.dtype) == 2) {
      // Where k is divided, its parts are not to be rounded before they are added.
      prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
             uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    }
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(kind_.workspace_bytes()));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t(Alignment(matmul_.a.data)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(Alignment(matmul_.b.data)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t(Alignment(d)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t(Alignment(d)));
    if (!status.ok()) return status;

    std::vector<cublasLtMatmulHeuristicResult_t> results(count);
    int found = 0;
    const cublasStatus_t answer = lt_.AlgoGetHeuristic(
        handle_, descriptors.product.get(), descriptors.a.get(), descriptors.b.get(),
        descriptors.d.get(), descriptors.d.get(), preference.get(), count, results.data(), &found);
    const bool cannot =
        answer == CUBLAS_STATUS_NOT_SUPPORTED || (fused && answer == CUBLAS_STATUS_INVALID_VALUE);
    if (cannot && fused) return Status();
    status = lt_.ToStatus(answer, "cublasLtMatmulAlgoGetHeuristic");
    if (!status.ok()) return status;
    for (int i = 0; i < found; ++i) {
      if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
      auto candidate = std::make_shared<Choice>();
      candidate->way = index;
      candidate->algorithm = results[i].algo;
      candidate->workspace_bytes = results[i].workspaceSize;
      status = Describe(way, &candidate->descriptors);
      if (!status.ok()) return status;
      candidates->push_back(std::move(candidate));
    }
    return Status();
  }

  Status Describe(const MatmulWay& way, Descriptors* d) const {
    cublasLtMatmulDesc_t product = nullptr;
    Status status = lt_.ToStatus(lt_.DescCreate(&product, types_.compute, types_.scale),
                                 "cublasLtMatmulDescCreate");
    if (!status.ok()) return status;
    d->product = {product, lt_.DescDestroy};
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
      if (status.ok()) status = Set(product, attribute, value);
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t(matmul_.a.operation));
    set(CUBLASLT_MATMUL_DESC_TRANSB, int32_t(matmul_.b.operation));
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, int32_t(way.epilogue));
    if (HasAux(way)) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, matmul_.ldd);
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, epilogue_.aux_stride);
    }
    if (status.ok()) {
      status = SetPointers(way, product, {matmul_.d, epilogue_.aux, epilogue_.bias_gradient});
    }
    const bool transposes_a = matmul_.a.operation != CUBLAS_OP_N;
    const bool transposes_b = matmul_.b.operation != CUBLAS_OP_N;
    const Matmul& m = matmul_;
    const auto layout = [&](int64_t rows, int64_t cols, int64_t ld, int64_t stride,
                            Owned<cublasLtMatrixLayout_t>* result) {
      if (!status.ok()) return;
      cublasLtMatrixLayout_t created = nullptr;
      status = lt_.ToStatus(lt_.LayoutCreate(&created, types_.matrix, rows, cols, ld),
                            "cublasLtMatrixLayoutCreate");
      if (!status.ok()) return;
      *result = {created, lt_.LayoutDestroy};
      const auto set_layout = [&](cublasLtMatrixLayoutAttribute_t attribute, auto value) {
        if (!status.ok()) return;
        status = lt_.ToStatus(lt_.LayoutSetAttribute(created, attribute, &value, sizeof value),
                              "cublasLtMatrixLayoutSetAttribute");
      };
      set_layout(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(m.batch));
      set_layout(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
    };
    layout(transposes_a ? m.k : m.m, transposes_a ? m.m : m.k, m.a.ld, m.a.stride, &d->a);
    layout(transposes_b ? m.n : m.k, transposes_b ? m.k : m.n, m.b.ld, m.b.stride, &d->b);
    layout(m.m, m.n, m.ldd, m.stride_d, &d->d);
    return status;
  }

  // Scratch memory in the place of the results, aligned as they are. There may be none.
  void* Scratch(const void* live, int64_t elements) {
    const int64_t bytes = elements * SizeOf(matmul_.dtype) + kBestAlignment;
    void* const memory = device_.TryAllocate(bytes);
    if (memory == nullptr) return nullptr;
    return static_cast<char*>(memory) + Alignment(live) % kBestAlignment;
  }

  // Leaves the choice as it is where there is no memory for all that is timed: a product that fits
  // runs, even where its rivals do not fit beside it.
  Status ChooseByTime(const std::vector<std::shared_ptr<Choice>>& candidates, double milliseconds,
                      std::shared_ptr<Choice>* choice) {
    const Matmul& m = matmul_;
    const int64_t stride = std::max(m.stride_d, epilogue_.aux_stride);
    const int64_t elements = (m.batch - 1) * stride + (m.n - 1) * m.ldd + m.m;
    size_t workspace_bytes = 0;
    for (const auto& candidate : candidates) {
      workspace_bytes = std::max(workspace_bytes, candidate->workspace_bytes);
    }
    MatmulOutputs outputs;
    const auto scratch = [&](const void* live, int64_t elements, void** memory) {
      if (live != nullptr) *memory = Scratch(live, elements);
      return live == nullptr || *memory != nullptr;
    };
    if (!scratch(m.d, elements, &outputs.d) || !scratch(epilogue_.aux, elements, &outputs.aux) ||
        !scratch(epilogue_.bias_gradient, std::max(m.m, m.n), &outputs.bias)) {
      return Status();
    }
    void* workspace = nullptr;
    if (workspace_bytes > 0) {
      workspace = device_.Scratch(workspace_bytes, /*tries_hard=*/false);
      if (workspace == nullptr) return Status();
    }
    // What others have enqueued is not to be timed, nor taken for the time that this may take.
    Status status = ToStatus(cudaStreamSynchronize(device_.stream()), "cudaStreamSynchronize");
    cudaEvent_t begin = nullptr, end = nullptr;
    if (status.ok()) status = ToStatus(cudaEventCreate(&begin), "cudaEventCreate");
    if (status.ok()) status = ToStatus(cudaEventCreate(&end), "cudaEventCreate");
    const auto started = std::chrono::steady_clock::now();
    const auto milliseconds_left = [&] {
      const std::chrono::duration<double, std::milli> gone =
          std::chrono::steady_clock::now() - started;
      return milliseconds - gone.count();
    };
    float best = 0;
    for (const auto& candidate : candidates) {
      if (!status.ok() || milliseconds_left() < 2 * best) break;
      // The first run also loads the kernel; cublasLt may find only now that it cannot run it.
      float time = 0;
      status = Time(*candidate, 1, outputs, workspace, begin, end, &time);
      if (status.ok() && time < milliseconds_left()) {
        status = Time(*candidate, 1, outputs, workspace, begin, end, &time);
      }
      if (status.code() == StatusCode::kUnavailable ||
          status.code() == StatusCode::kResourceExhausted) {
        status = Status();
        continue;
      }
      const double share = kMillisecondsPerCandidate / std::max(time, 1e-3f);
      const int runs = static_cast<int>(std::clamp(share, 1.0, 20.0));
      if (status.ok() && runs > 1 && time < milliseconds_left()) {
        status = Time(*candidate, runs, outputs, workspace, begin, end, &time);
      }
      if (status.ok() && (best == 0 || time < best)) {
        best = time;
        *choice = candidate;
      }
    }
    if (begin != nullptr) cudaEventDestroy(begin);
    if (end != nullptr) cudaEventDestroy(end);
    return status;
  }

  // The time of one of several runs.
  Status Time(Choice& candidate, int runs, const MatmulOutputs& outputs, void* workspace,
              cudaEvent_t begin, cudaEvent_t end, float* milliseconds) {
    const cudaStream_t stream = device_.stream();
    Status status = ToStatus(cudaEventRecord(begin, stream), "cudaEventRecord");
    for (int i = 0; i < runs && status.ok(); ++i) status = Run(candidate, outputs, workspace);
    if (status.ok()) status = ToStatus(cudaEventRecord(end, stream), "cudaEventRecord");
    if (status.ok()) status = ToStatus(cudaEventSynchronize(end), "cudaEventSynchronize");
    if (status.ok()) {
      status = ToStatus(cudaEventElapsedTime(milliseconds, begin, end), "cudaEventElapsedTime");
      *milliseconds /= static_cast<float>(runs);
    }
    return status;
  }

  const CublasLt& lt_;
  cublasLtHandle_t handle_;
  const DeviceKind& kind_;
  const Matmul& matmul_;
  const MatmulEpilogue& epilogue_;
  Device& device_;
  Types types_;
};

// The choice for a problem that was made before, here or in the process that wrote a file; null
// where there is none. Neither waits nor times.
std::shared_ptr<Choice> Known(Runner& runner, const Key& key) {
  std::optional<SavedChoice> saved;
  std::shared_ptr<Choice> choice = Choices::Get().Find(key, &saved);
  if (choice != nullptr || !saved) return choice;
  choice = runner.Restore(*saved);
  return choice == nullptr ? nullptr : Choices::Get().Add(key, choice);
}

// That choice, or one that is made now.
Status FindChoice(Runner& runner, const Key& key, bool timed, std::shared_ptr<Choice>* choice) {
  Choices& choices = Choices::Get();
  // Two at once would time each other.
  std::unique_lock<std::mutex> timing(choices.timing(), std::defer_lock);
  if (timed) timing.lock();
  *choice = Known(runner, key);
  if (*choice != nullptr) return Status();
  const std::optional<Search> search = timed ? choices.MayTime(key) : std::nullopt;
  if (Status status = runner.Choose(search, choice); !status.ok()) return status;
  if (search) choices.CountTimed(key);
  *choice = choices.Add(key, *choice);
  return Status();
}

}  // namespace

Status Enqueue(const Matmul& matmul, const MatmulEpilogue& epilogue, Device& device) {
  const CublasLt* lt = nullptr;
  if (Status status = OpenCublasLt(&lt); !status.ok()) return status;
  const DeviceKind* kind = nullptr;
  if (Status status = CurrentDevice(&kind); !status.ok()) return status;
  cublasLtHandle_t handle = nullptr;
  if (Status status = HandleFor(*lt, kind->ordinal, &handle); !status.ok()) return status;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  Status status =
      ToStatus(cudaStreamIsCapturing(device.stream(), &capture), "cudaStreamIsCapturing");
  if (!status.ok()) return status;

  const bool is_capturing = capture != cudaStreamCaptureStatusNone;
  const auto key = [&](bool timed) {
    return KeyOf(matmul, epilogue, *kind, device.allows_tf32(), timed);
  };
  Runner runner(*lt, handle, *kind, matmul, epilogue, device);
  // While a graph is captured, one that was timed before is as good as ever.
  bool timed = !device.deterministic() && matmul.repeats;
  std::shared_ptr<Choice> choice;
  if (timed) choice = Known(runner, key(timed));
  if (choice == nullptr) {
    timed = timed && !is_capturing;
    status = FindChoice(runner, key(timed), timed, &choice);
    if (!status.ok()) return status;
  }
  void* workspace = nullptr;
  if (choice->workspace_bytes > 0) {
    workspace = device.Scratch(choice->workspace_bytes);
    if (workspace == nullptr) return OutOfMemory("cublasLt's workspace", choice->workspace_bytes);
  }
  return runner.Run(*choice, {matmul.d, epilogue.aux, epilogue.bias_gradient}, workspace);
}

}  // namespace stopgrad::cuda
