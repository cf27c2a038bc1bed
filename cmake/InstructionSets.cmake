# Compiles one source for several instruction sets, and finds out whether the C library has vector
# forms of exp, tanh and erfc in float64.
include(CheckCXXCompilerFlag)
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

# The targets, and their compiler flags.
set(STOPGRAD_TARGETS baseline)
set(STOPGRAD_FLAGS_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND STOPGRAD_TARGETS avx2 avx512)
  set(STOPGRAD_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(STOPGRAD_FLAGS_avx512 ${STOPGRAD_FLAGS_avx2} -mavx512f -mavx512bw -mavx512cd -mavx512dq
    -mavx512vl -mprefer-vector-width=512)
  # GCC 9 does not know it.
  check_cxx_compiler_flag(-mavx512bf16 STOPGRAD_HAVE_AVX512_BF16)
  set(STOPGRAD_FLAGS_avx512_bf16 ${STOPGRAD_FLAGS_avx512} -mavx512bf16)
  # Nor does GCC 10 know tiles. A new compiler may have an old assembler; and the system is asked as
  # Linux is.
  set(STOPGRAD_FLAGS_amx_bf16 ${STOPGRAD_FLAGS_avx512_bf16} -mamx-tile -mamx-bf16)
  list(JOIN STOPGRAD_FLAGS_amx_bf16 " " CMAKE_REQUIRED_FLAGS)
  check_cxx_source_compiles("
    #include <immintrin.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    int main(int, char** text) {
      _tile_loadd(1, text, 64);
      _tile_dpbf16ps(0, 1, 2);
      return syscall(SYS_arch_prctl, 0, 0);
    }" STOPGRAD_HAVE_AMX_BF16)
  unset(CMAKE_REQUIRED_FLAGS)
endif()

# stopgrad_compile_for(<library> <target> <source>...) adds the sources' objects for an instruction
# set, whose name they find in STOPGRAD_TARGET. The library's sources can ask for STOPGRAD_HAVE_<name
# in capitals>.
function(stopgrad_compile_for library target)
  set(object ${library}_${target})
  add_library(${object} OBJECT ${ARGN})
  target_include_directories(${object} PRIVATE csrc)
  target_compile_definitions(${object} PRIVATE STOPGRAD_TARGET=${target})
  # Without errno and floating-point traps, of which nobody asks, comparisons and elementary
  # functions can be vector code; results are the same. Multiplications and additions are fused
  # where the target can, as GCC does anyway.
  target_compile_options(${object} PRIVATE
    -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast ${STOPGRAD_FLAGS_${target}})
  if(STOPGRAD_HAVE_LIBMVEC)
    target_compile_definitions(${object} PRIVATE STOPGRAD_HAVE_LIBMVEC)
    target_link_libraries(${library} PRIVATE mvec m)
  endif()
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:${object}>)
  string(TOUPPER ${target} capitals)
  target_compile_definitions(${library} PRIVATE STOPGRAD_HAVE_${capitals})
endfunction()
