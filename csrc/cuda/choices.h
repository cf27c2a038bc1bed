#ifndef STOPGRAD_CUDA_CHOICES_H_
#define STOPGRAD_CUDA_CHOICES_H_

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "core/export.h"
#include "core/status.h"
#include "cuda/device_kind.h"
#include "cuda/matmul.h"

namespace stopgrad::cuda {

// What cublasLt prefers; what is aligned less may have fewer algorithms.
inline constexpr int64_t kBestAlignment = 256;

// In bytes, as far as an algorithm can profit from it.
int64_t Alignment(const void* pointer);

// The bias that is read or the gradient that is written.
const void* BiasOf(const MatmulEpilogue& epilogue);

// All that can change which algorithm is best or allowed. Compared and saved as a row of numbers,
// beside the device's name.
struct Key {
  static constexpr int kSizes = 11;  // the last ones of the numbers
  std::array<int64_t, 12 + kSizes> numbers;
  std::string device;

  bool operator<(const Key& other) const {
    return std::tie(numbers, device) < std::tie(other.numbers, other.device);
  }
};

Key KeyOf(const Matmul& matmul, const MatmulEpilogue& epilogue, const DeviceKind& kind, bool tf32,
          bool timed);

template <typename Object>
using Owned = std::unique_ptr<std::remove_pointer_t<Object>, cublasStatus_t (*)(Object)>;

struct Descriptors {
  Owned<cublasLtMatmulDesc_t> product{nullptr, nullptr};
  Owned<cublasLtMatrixLayout_t> a{nullptr, nullptr};
  Owned<cublasLtMatrixLayout_t> b{nullptr, nullptr};
  Owned<cublasLtMatrixLayout_t> d{nullptr, nullptr};
};

struct Choice {
  size_t way;  // of the epilogue's
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace_bytes;
  Descriptors descriptors;
  std::mutex mutex;  // guards the descriptors, into which each call writes its pointers
};

// A choice as it is in a file: without descriptors.
struct SavedChoice {
  size_t way;
  cublasLtMatmulAlgo_t algorithm;
};

// How hard to look for an algorithm: of how many proposals for each way, and how long a candidate
// may still be begun. A benchmark that wants to know what there is looks harder than a first call
// may.
struct Search {
  int candidates = 8;
  double milliseconds = 40;
};

// The choices of this process.
class Choices {
 public:
  static Choices& Get();

  // The choice of a problem, or null, and then what a file has, if there is anything.
  std::shared_ptr<Choice> Find(const Key& key, std::optional<SavedChoice>* saved) const;

  // Keeps a choice, unless there is one by now, and returns the one that is kept.
  std::shared_ptr<Choice> Add(const Key& key, std::shared_ptr<Choice> choice);

  // How hard to look, if a problem shall be timed; of those of one family only some are.
  std::optional<Search> MayTime(const Key& key) const;
  void CountTimed(const Key& key);

  // Held by the one thread that may time.
  std::mutex& timing() { return timing_; }

  Status Save(const std::string& path, size_t version) const;
  Status Load(const std::string& path, size_t version);
  void SetSearch(const Search& search);
  void Forget();
  int64_t num_timed() const;

 private:
  mutable std::mutex mutex_;
  Search search_;
  std::map<Key, std::shared_ptr<Choice>> choices_;
  std::map<Key, SavedChoice> saved_;
  std::map<Key, int> timed_sizes_;  // of each family
  int64_t num_timed_ = 0;
  std::mutex timing_;
};

// Writes the choices made so far to a file, or adds those of a file, so that a process need not
// time again what another one did. They hold for one version of cublasLt; a file of another one is
// an InvalidArgument, as is one that cannot be read or written.
STOPGRAD_EXPORT Status SaveChoices(const std::string& path);
STOPGRAD_EXPORT Status LoadChoices(const std::string& path);

STOPGRAD_EXPORT void SetSearch(const Search& search);

// For tests: forgets all choices; how many were made by timing since then.
STOPGRAD_EXPORT void ForgetChoices();
STOPGRAD_EXPORT int64_t NumTimed();

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_CHOICES_H_
