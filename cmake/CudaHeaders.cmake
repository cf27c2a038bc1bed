# What backend/find_cuda.py finds: the target CudaHeaders, STOPGRAD_CUDA_COMPILER, and where the
# headers, or they or the compiler, are missing, STOPGRAD_CUDA_HEADERS_MISSING and
# STOPGRAD_CUDA_MISSING, which say what and what to type.
get_filename_component(stopgrad_find_cuda ${CMAKE_CURRENT_LIST_DIR}/../backend/find_cuda.py ABSOLUTE)
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${stopgrad_find_cuda}" ${stopgrad_include_dir}
  OUTPUT_VARIABLE stopgrad_cuda ERROR_VARIABLE stopgrad_error RESULT_VARIABLE stopgrad_failed)
if(stopgrad_failed)
  message(FATAL_ERROR "${stopgrad_error}")
endif()

# A null gives an empty string.
string(JSON STOPGRAD_CUDA_COMPILER GET "${stopgrad_cuda}" compiler)
string(JSON stopgrad_runtime_include GET "${stopgrad_cuda}" runtime_include)
string(JSON stopgrad_cublas_include GET "${stopgrad_cuda}" cublas_include)
string(JSON STOPGRAD_CUDA_HEADERS_MISSING GET "${stopgrad_cuda}" headers_missing)
string(JSON STOPGRAD_CUDA_MISSING GET "${stopgrad_cuda}" missing)

add_library(CudaHeaders INTERFACE)
# The folder of cublasLt's may have an incomplete copy of the runtime's.
target_include_directories(CudaHeaders SYSTEM INTERFACE
  ${stopgrad_runtime_include} ${stopgrad_cublas_include})
