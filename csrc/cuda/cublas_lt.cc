#include "cuda/cublas_lt.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace stopgrad::cuda {

namespace {

// The file's name, and where NVIDIA's Python packages put it, from the folder that holds all
// packages. Newest first.
struct Release {
  int cuda;
  const char* name;
  const char* folder;
};
constexpr Release kReleases[] = {
    {13, "libcublasLt.so.13", "nvidia/cu13/lib"},
    {12, "libcublasLt.so.12", "nvidia/cublas/lib"},
};

// The folder that holds the packages of the Python environment that this library is in.
std::string PackagesFolder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&PackagesFolder), &info) == 0) return "";
  const std::string path = info.dli_fname;  // <packages>/stopgrad_op/<this library>
  const size_t file = path.rfind('/');
  if (file == std::string::npos || file == 0) return "";
  const size_t folder = path.rfind('/', file - 1);
  return folder == std::string::npos ? "" : path.substr(0, folder);
}

Status OpenFile(void** library) {
  if (const char* chosen = std::getenv("STOPGRAD_CUBLASLT"); chosen != nullptr && *chosen != '\0') {
    *library = dlopen(chosen, RTLD_NOW | RTLD_LOCAL);
    if (*library != nullptr) return Status();
    return Status(
        StatusCode::kUnavailable,
        "STOPGRAD_CUBLASLT names a library that cannot be opened: " + std::string(dlerror()));
  }
  std::string complaint;
  const auto open = [&](const std::string& name, int flags) {
    *library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
    if (*library != nullptr) return true;
    // Of a file that is there but cannot be opened, what the loader says is worth repeating.
    const char* error = dlerror();
    if (error != nullptr && flags == 0) complaint = error;
    return false;
  };
  // What is newer than the driver could not run.
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::vector<const Release*> releases;
  for (const Release& release : kReleases) {
    if (driver == 0 || release.cuda <= driver / 1000) releases.push_back(&release);
  }
  for (const Release* release : releases) {
    if (open(release->name, RTLD_NOLOAD)) return Status();
  }
  // Before the loader's: the other libraries of that package will want it in this process.
  const std::string packages = PackagesFolder();
  for (const Release* release : releases) {
    const std::string path = packages + "/" + release->folder + "/" + release->name;
    if (!packages.empty() && open(path, 0)) return Status();
  }
  for (const Release* release : releases) {
    if (open(release->name, 0)) return Status();
  }
  const char* const package =
      driver == 0 || driver >= 13000 ? "nvidia-cublas" : "nvidia-cublas-cu12";
  return Status(StatusCode::kUnavailable,
                "products on a GPU need cublasLt 12 or 13, and there is none (" + complaint +
                    "). Type: pip install " + package + ", or set STOPGRAD_CUBLASLT to the file");
}

std::string PathOf(void* library) {
  link_map* map = nullptr;
  if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr) return "";
  return map->l_name;
}

template <typename Function>
Status Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return Status();
  return Status(StatusCode::kUnavailable,
                PathOf(library) + " is no cublasLt 12 or 13: it has no " + name);
}

Status Open(CublasLt* lt) {
  void* library = nullptr;
  if (Status status = OpenFile(&library); !status.ok()) return status;
  lt->path = PathOf(library);
  Status status;
  const auto find = [&](const char* name, auto* function) {
    if (status.ok()) status = Find(library, name, function);
  };
  find("cublasLtCreate", &lt->Create);
  find("cublasLtGetVersion", &lt->GetVersion);
  find("cublasLtGetStatusName", &lt->GetStatusName);
  find("cublasLtMatmul", &lt->Matmul);
  find("cublasLtMatmulAlgoCheck", &lt->AlgoCheck);
  find("cublasLtMatmulAlgoGetHeuristic", &lt->AlgoGetHeuristic);
  find("cublasLtMatmulDescCreate", &lt->DescCreate);
  find("cublasLtMatmulDescDestroy", &lt->DescDestroy);
  find("cublasLtMatmulDescSetAttribute", &lt->DescSetAttribute);
  find("cublasLtMatrixLayoutCreate", &lt->LayoutCreate);
  find("cublasLtMatrixLayoutDestroy", &lt->LayoutDestroy);
  find("cublasLtMatrixLayoutSetAttribute", &lt->LayoutSetAttribute);
  find("cublasLtMatmulPreferenceCreate", &lt->PreferenceCreate);
  find("cublasLtMatmulPreferenceDestroy", &lt->PreferenceDestroy);
  find("cublasLtMatmulPreferenceSetAttribute", &lt->PreferenceSetAttribute);
  if (status.ok() && lt->GetVersion() / 10000 < 12) {
    return Status(StatusCode::kUnavailable, lt->path + " is cublasLt " +
                                                std::to_string(lt->GetVersion()) +
                                                "; due is 12.0 (120000) or later");
  }
  return status;
}

}  // namespace

Status CublasLt::ToStatus(cublasStatus_t status, const char* call) const {
  if (status == CUBLAS_STATUS_SUCCESS) return Status();
  // What an algorithm that it proposed itself may turn out to be.
  const bool cannot = status == CUBLAS_STATUS_NOT_SUPPORTED ||
                      status == CUBLAS_STATUS_ARCH_MISMATCH ||
                      status == CUBLAS_STATUS_INVALID_VALUE;
  const StatusCode code = status == CUBLAS_STATUS_ALLOC_FAILED ? StatusCode::kResourceExhausted
                          : cannot                             ? StatusCode::kUnavailable
                                                               : StatusCode::kInternal;
  return Status(code, std::string(call) + ": " + GetStatusName(status));
}

Status OpenCublasLt(const CublasLt** library) {
  static std::mutex mutex;
  static CublasLt* opened = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  if (opened == nullptr) {
    // Tried again after an error: until then there may be one.
    auto fresh = std::make_unique<CublasLt>();
    if (Status status = Open(fresh.get()); !status.ok()) return status;
    opened = fresh.release();
  }
  *library = opened;
  return Status();
}

Status HandleFor(const CublasLt& library, int device, cublasLtHandle_t* handle) {
  static std::mutex mutex;
  static auto* handles = new std::map<int, cublasLtHandle_t>;
  std::lock_guard<std::mutex> lock(mutex);
  cublasLtHandle_t& own = (*handles)[device];
  if (own == nullptr) {
    if (Status status = library.ToStatus(library.Create(&own), "cublasLtCreate"); !status.ok()) {
      return status;
    }
  }
  *handle = own;
  return Status();
}

}  // namespace stopgrad::cuda
