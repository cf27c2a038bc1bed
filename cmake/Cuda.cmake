# Enables CUDA, unless STOPGRAD_CUDA is OFF or, where it is AUTO, something is missing; then
# STOPGRAD_CUDA_MISSING says why.
set(STOPGRAD_CUDA AUTO CACHE STRING "The CUDA kernels: ON, OFF, or AUTO, where they can be built")
set_property(CACHE STOPGRAD_CUDA PROPERTY STRINGS AUTO ON OFF)

if(STOPGRAD_CUDA STREQUAL "AUTO" OR STOPGRAD_CUDA)
  include(cmake/CudaHeaders.cmake)
else()
  set(STOPGRAD_CUDA_MISSING "it was built with STOPGRAD_CUDA=OFF")
endif()
if(STOPGRAD_CUDA_MISSING)
  if(STOPGRAD_CUDA AND NOT STOPGRAD_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "STOPGRAD_CUDA=ON: ${STOPGRAD_CUDA_MISSING}")
  endif()
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "${STOPGRAD_CUDA_COMPILER}")
endif()
# Not every nvcc knows every C++ compiler, and CMake would stop where one does not.
set(stopgrad_trial ${CMAKE_CURRENT_BINARY_DIR}/trial.cu)
file(WRITE ${stopgrad_trial} "__global__ void kernel() {}\n#include <algorithm>\n")
execute_process(
  COMMAND ${CMAKE_CUDA_COMPILER} -std=c++17 -c ${stopgrad_trial} -o ${stopgrad_trial}.o
  OUTPUT_VARIABLE stopgrad_output ERROR_VARIABLE stopgrad_error RESULT_VARIABLE stopgrad_failed)
if(stopgrad_failed)
  string(REGEX MATCH "[^\n]*error[^\n]*" stopgrad_error "${stopgrad_output}${stopgrad_error}")
  string(REPLACE "\"" "'" stopgrad_error "${stopgrad_error}")
  set(STOPGRAD_CUDA_MISSING "${CMAKE_CUDA_COMPILER} cannot compile: ${stopgrad_error}")
  if(NOT STOPGRAD_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "STOPGRAD_CUDA=ON: ${STOPGRAD_CUDA_MISSING}")
  endif()
  return()
endif()
# Machine code for these, and PTX from which the driver makes it for what comes after.
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 90-virtual)
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
