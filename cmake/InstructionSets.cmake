# Compiles one source for several instruction sets, and finds out whether the C library has vector
# forms of exp, tanh and erfc in float64.
include(CheckCXXSourceCompiles)

set(CMAKE_REQUIRED_LIBRARIES mvec m)
check_cxx_source_compiles("
  #include <cmath>
  extern \"C\" __attribute__((simd(\"notinbranch\"))) double erfc(double) noexcept;
  extern \"C\" void _ZGVbN2v_erfc();
  int main(int argc, char**) {
    auto* volatile vector_form = &_ZGVbN2v_erfc;
    return erfc(argc) > 2 && vector_form;
  }" STOPGRAD_HAVE_LIBMVEC)
unset(CMAKE_REQUIRED_LIBRARIES)

# stopgrad_compile_for_targets(<library> <source>...) adds the sources' objects for each instruction
# set, whose name they find in STOPGRAD_TARGET.
function(stopgrad_compile_for_targets library)
  set(targets baseline)
  set(flags_baseline "")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    list(APPEND targets avx2 avx512)
    set(flags_avx2 -mavx2 -mfma)
    set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl
      -mprefer-vector-width=512)
    target_compile_definitions(${library} PRIVATE STOPGRAD_X86_TARGETS)
  endif()
  foreach(name IN LISTS targets)
    set(object ${library}_${name})
    add_library(${object} OBJECT ${ARGN})
    target_include_directories(${object} PRIVATE csrc)
    target_compile_definitions(${object} PRIVATE STOPGRAD_TARGET=${name})
    # Without errno and floating-point traps, of which nobody asks, comparisons and elementary
    # functions can be vector code; results are the same. Multiplications and additions are fused
    # where the target can, as GCC does anyway.
    target_compile_options(${object} PRIVATE
      -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast ${flags_${name}})
    if(STOPGRAD_HAVE_LIBMVEC)
      target_compile_definitions(${object} PRIVATE STOPGRAD_HAVE_LIBMVEC)
    endif()
    target_sources(${library} PRIVATE $<TARGET_OBJECTS:${object}>)
  endforeach()
  if(STOPGRAD_HAVE_LIBMVEC)
    target_link_libraries(${library} PRIVATE mvec m)
  endif()
endfunction()
