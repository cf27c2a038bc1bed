#include "cpu/openblas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

namespace stopgrad::cpu {

namespace {

std::string FolderOfThisLibrary() {
  static const char anchor = 0;
  Dl_info info;
  if (dladdr(&anchor, &info) == 0 || info.dli_fname == nullptr) return ".";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

void* OpenLibrary(const std::string& path) {
  // OpenBLAS starts a thread a core when it is loaded, unless the environment says otherwise. It
  // gets none: products are split over the caller's threads.
  constexpr const char* kVariable = "OPENBLAS_NUM_THREADS";
  const char* const value = std::getenv(kVariable);
  const std::string saved = value == nullptr ? "" : value;
  setenv(kVariable, "1", /*overwrite=*/1);
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (value == nullptr) {
    unsetenv(kVariable);
  } else {
    setenv(kVariable, saved.c_str(), /*overwrite=*/1);
  }
  return library;
}

OpenBlas Open() {
  OpenBlas blas;
  const std::string path = FolderOfThisLibrary() + "/" + STOPGRAD_OPENBLAS_FILE;
  void* library = OpenLibrary(path);
  if (library == nullptr) {
    const char* reason = dlerror();
    blas.status = Status(StatusCode::kInternal,
                         "OpenBLAS cannot be opened: " + std::string(reason ? reason : path) +
                             "; install stopgrad_op again");
    return blas;
  }
  const auto find = [&](const char* name, auto* function) {
    void* symbol = dlsym(library, name);
    if (symbol == nullptr && blas.status.ok()) {
      blas.status = Status(StatusCode::kInternal, path + " has no function " + name);
    }
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(symbol);
  };
  const char* (*config)() = nullptr;
  const char* (*core_name)() = nullptr;
  find("scipy_cblas_sgemm64_", &blas.sgemm);
  find("scipy_cblas_dgemm64_", &blas.dgemm);
  find("scipy_cblas_cgemm64_", &blas.cgemm);
  find("scipy_cblas_zgemm64_", &blas.zgemm);
  find("scipy_openblas_get_config64_", &config);
  find("scipy_openblas_get_corename64_", &core_name);
  if (blas.status.ok()) {
    const std::string text = config();  // "OpenBLAS 0.3.34 USE64BITINT DYNAMIC_ARCH ..."
    blas.description = text.substr(0, text.find(' ', text.find(' ') + 1)) + ", " + core_name();
  }
  return blas;
}

}  // namespace

const OpenBlas& GetOpenBlas() {
  static const OpenBlas* const blas = new OpenBlas(Open());
  return *blas;
}

}  // namespace stopgrad::cpu
