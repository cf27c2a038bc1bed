#include "cuda/choices.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "cuda/cublas_lt.h"

namespace stopgrad::cuda {

namespace {

// Of products that differ in nothing but their sizes, as many are timed. Where sizes go on
// changing, timing would never end; then cublasLt's first proposal runs.
constexpr int kMostTimedSizes = 16;
// When there are more choices, all are forgotten.
constexpr size_t kMostChoices = 4096;

// The ways in one number, 16 bits each.
int64_t NumberOf(const std::vector<MatmulWay>& ways) {
  int64_t number = 0;
  for (const MatmulWay& way : ways) {
    number = number << 16 | way.epilogue << 2 | int{way.writes_aux} << 1 | int{way.then != nullptr};
  }
  return number;
}

// The same problem in any size.
Key FamilyOf(Key key) {
  std::fill(key.numbers.end() - Key::kSizes, key.numbers.end(), 0);
  return key;
}

constexpr const char* kFileTitle = "stopgrad_op: cublasLt algorithms, format 3, cublasLt";

Status FileError(const std::string& path, const std::string& what) {
  return InvalidArgument("the file of algorithms " + path + " " + what);
}

}  // namespace

int64_t Alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return address == 0 ? 0 : std::min<int64_t>(kBestAlignment, address & -address);
}

const void* BiasOf(const MatmulEpilogue& epilogue) {
  return epilogue.bias != nullptr ? epilogue.bias : epilogue.bias_gradient;
}

Key KeyOf(const Matmul& m, const MatmulEpilogue& epilogue, const DeviceKind& kind, bool tf32,
          bool timed) {
  return {{static_cast<int64_t>(m.dtype), tf32, timed, m.a.operation, m.b.operation, m.beta != 0,
           NumberOf(epilogue.ways), Alignment(m.a.data), Alignment(m.b.data), Alignment(m.d),
           Alignment(BiasOf(epilogue)), Alignment(epilogue.aux),
           // The sizes:
           m.m, m.n, m.k, m.batch, m.a.ld, m.a.stride, m.b.ld, m.b.stride, m.ldd, m.stride_d,
           epilogue.aux_stride},
          kind.name};
}

Choices& Choices::Get() {
  static auto* choices = new Choices;
  return *choices;
}

std::shared_ptr<Choice> Choices::Find(const Key& key, std::optional<SavedChoice>* saved) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = choices_.find(key);
  if (found != choices_.end()) return found->second;
  const auto in_file = saved_.find(key);
  if (in_file != saved_.end()) *saved = in_file->second;
  return nullptr;
}

std::shared_ptr<Choice> Choices::Add(const Key& key, std::shared_ptr<Choice> choice) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (choices_.size() >= kMostChoices) choices_.clear();
  return choices_.emplace(key, std::move(choice)).first->second;
}

std::optional<Search> Choices::MayTime(const Key& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto timed = timed_sizes_.find(FamilyOf(key));
  if (timed != timed_sizes_.end() && timed->second >= kMostTimedSizes) return std::nullopt;
  return search_;
}

void Choices::CountTimed(const Key& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++num_timed_;
  ++timed_sizes_[FamilyOf(key)];
}

void Choices::SetSearch(const Search& search) {
  std::lock_guard<std::mutex> lock(mutex_);
  search_ = search;
  search_.candidates = std::max(1, search.candidates);
}

void Choices::Forget() {
  std::lock_guard<std::mutex> lock(mutex_);
  choices_.clear();
  saved_.clear();
  timed_sizes_.clear();
  num_timed_ = 0;
}

int64_t Choices::num_timed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return num_timed_;
}

// --- Choices in files --------------------------------------------------------------------------
Status Choices::Save(const std::string& path, size_t version) const {
  std::ofstream file(path);
  file << kFileTitle << ' ' << version << '\n';
  {
    std::lock_guard<std::mutex> lock(mutex_);
    std::map<Key, SavedChoice> all = saved_;
    for (const auto& [key, choice] : choices_) all[key] = {choice->way, choice->algorithm};
    for (const auto& [key, choice] : all) {
      for (int64_t number : key.numbers) file << number << ' ';
      file << choice.way;
      for (uint64_t word : choice.algorithm.data) file << ' ' << word;
      file << ' ' << key.device << '\n';
    }
  }
  file.close();
  return file ? Status() : FileError(path, "cannot be written");
}

Status Choices::Load(const std::string& path, size_t version) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return FileError(path, "cannot be read");
  const std::string title = kFileTitle + (' ' + std::to_string(version));
  if (line != title) {
    return FileError(path, "begins with \"" + line + "\"; due is \"" + title + "\"");
  }
  std::map<Key, SavedChoice> saved;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    Key key;
    SavedChoice choice;
    for (int64_t& number : key.numbers) words >> number;
    words >> choice.way;
    for (uint64_t& word : choice.algorithm.data) words >> word;
    if (!std::getline(words >> std::ws, key.device)) {
      return FileError(path, "has a line that is no algorithm: \"" + line + "\"");
    }
    saved[key] = choice;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [key, choice] : saved) saved_[key] = choice;
  return Status();
}

Status SaveChoices(const std::string& path) {
  const CublasLt* lt = nullptr;
  if (Status status = OpenCublasLt(&lt); !status.ok()) return status;
  return Choices::Get().Save(path, lt->GetVersion());
}

Status LoadChoices(const std::string& path) {
  const CublasLt* lt = nullptr;
  if (Status status = OpenCublasLt(&lt); !status.ok()) return status;
  return Choices::Get().Load(path, lt->GetVersion());
}

void SetSearch(const Search& search) { Choices::Get().SetSearch(search); }
void ForgetChoices() { Choices::Get().Forget(); }
int64_t NumTimed() { return Choices::Get().num_timed(); }

}  // namespace stopgrad::cuda
