# The TensorFlow that backend/find_tensorflow.py finds, as the target TensorFlow::framework.
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/backend/find_tensorflow.py"
  OUTPUT_VARIABLE stopgrad_tensorflow ERROR_VARIABLE stopgrad_error RESULT_VARIABLE stopgrad_failed)
if(stopgrad_failed)
  message(FATAL_ERROR "${stopgrad_error}")
endif()

foreach(key distribution version include_dir cxx_standard framework_library cc_library)
  string(JSON stopgrad_${key} GET "${stopgrad_tensorflow}" ${key})
endforeach()
set(TensorFlow_VERSION "${stopgrad_version}")
set(TensorFlow_DISTRIBUTION "${stopgrad_distribution}")

add_library(TensorFlow::framework SHARED IMPORTED)
set_target_properties(TensorFlow::framework PROPERTIES
  IMPORTED_LOCATION "${stopgrad_framework_library}")
target_include_directories(TensorFlow::framework SYSTEM INTERFACE "${stopgrad_include_dir}")
string(JSON stopgrad_flag_count LENGTH "${stopgrad_tensorflow}" compile_flags)
if(stopgrad_flag_count GREATER 0)
  math(EXPR stopgrad_last "${stopgrad_flag_count} - 1")
  foreach(i RANGE ${stopgrad_last})
    string(JSON stopgrad_flag GET "${stopgrad_tensorflow}" compile_flags ${i})
    # For all targets: std::string crosses from one to the other, and its layout is one of the flags.
    add_compile_options("${stopgrad_flag}")
  endforeach()
endif()
target_compile_features(TensorFlow::framework INTERFACE cxx_std_${stopgrad_cxx_standard})
# TensorFlow is built with it, and the inline functions in its headers have to agree with that.
target_compile_definitions(TensorFlow::framework INTERFACE NDEBUG)
message(STATUS "TensorFlow: ${TensorFlow_DISTRIBUTION} ${TensorFlow_VERSION}")

# TensorFlow::xla adds its compiler, unless TensorFlow_XLA_MISSING says why that cannot be used.
set(TensorFlow_XLA_MISSING "")
# Of these, XLA's own headers include some without the folders in between.
set(stopgrad_xla_include_dirs
  "${stopgrad_include_dir}/external/highwayhash"
  "${stopgrad_include_dir}/external/farmhash_archive/src")
# A header that a wheel lacks stops the preprocessor, within seconds. Its words are wanted in English.
list(TRANSFORM stopgrad_xla_include_dirs PREPEND "-I" OUTPUT_VARIABLE stopgrad_xla_flags)
execute_process(
  COMMAND "${CMAKE_COMMAND}" -E env LC_ALL=C "${CMAKE_CXX_COMPILER}" -E
    "-std=c++${stopgrad_cxx_standard}" "-I${CMAKE_CURRENT_SOURCE_DIR}/csrc" ${stopgrad_xla_flags}
    "-I${stopgrad_include_dir}" "${CMAKE_CURRENT_SOURCE_DIR}/csrc/xla/kernels.cc"
  OUTPUT_QUIET ERROR_VARIABLE stopgrad_error RESULT_VARIABLE stopgrad_failed)
if(stopgrad_failed)
  if(NOT stopgrad_error MATCHES "fatal error: '?([^:']+)")
    message(FATAL_ERROR "The headers of XLA cannot be read: ${stopgrad_error}")
  endif()
  set(TensorFlow_XLA_MISSING
    "the headers of ${TensorFlow_DISTRIBUTION} ${TensorFlow_VERSION} lack ${CMAKE_MATCH_1}, which XLA's include")
  message(STATUS "Without XLA (jit_compile=True): ${TensorFlow_XLA_MISSING}")
  return()
endif()
add_library(TensorFlow::xla SHARED IMPORTED)
set_target_properties(TensorFlow::xla PROPERTIES IMPORTED_LOCATION "${stopgrad_cc_library}")
target_include_directories(TensorFlow::xla SYSTEM INTERFACE ${stopgrad_xla_include_dirs})
target_link_libraries(TensorFlow::xla INTERFACE TensorFlow::framework)
