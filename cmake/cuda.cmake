# The CUDA side of weft_src. The .cu files are a target of their own: nvcc takes none of the flags in
# weft_flags, and sees none of the libraries that it cannot compile.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc can
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
find_package(CUDAToolkit 12.4 REQUIRED)
if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(weft_cuda_kernels OBJECT
  src/kernels/cuda/adamw.cu
  src/kernels/cuda/attention.cu
  src/kernels/cuda/attention_backward.cu
  src/kernels/cuda/attention_bf16.cu
  src/kernels/cuda/attention_bf16_backward.cu
  src/kernels/cuda/attention_stand_in.cu
  src/kernels/cuda/copy.cu
  src/kernels/cuda/cross_entropy.cu
  src/kernels/cuda/decay_gates.cu
  src/kernels/cuda/embedding.cu
  src/kernels/cuda/feature_map.cu
  src/kernels/cuda/gated_norm.cu
  src/kernels/cuda/pointwise.cu
  src/kernels/cuda/rmsnorm.cu
  src/kernels/cuda/rope.cu
  src/kernels/cuda/short_convolution.cu
  src/kernels/cuda/softmax.cu
  src/kernels/cuda/state_carry.cu
  src/kernels/cuda/state_chain.cu
  src/kernels/cuda/state_combine.cu
  src/kernels/cuda/state_delta.cu
  src/kernels/cuda/state_delta_carry.cu
  src/kernels/cuda/state_delta_gradients.cu
  src/kernels/cuda/state_delta_prepare.cu
  src/kernels/cuda/state_gradients.cu
  src/kernels/cuda/state_in_segments.cu
  src/kernels/cuda/state_lane_gradients.cu
  src/kernels/cuda/state_lane_leaving.cu
  src/kernels/cuda/state_lane_outputs.cu
  src/kernels/cuda/state_lane_segments.cu
  src/kernels/cuda/state_mixer.cu
  src/kernels/cuda/state_outputs.cu
  src/kernels/cuda/state_segment_gradients.cu
  src/kernels/cuda/state_segment_outputs.cu
  src/kernels/cuda/state_segments.cu)
set(WEFT_CUDA_TARGETS weft_cuda_kernels)

# What only sm_90a has: products by warpgroups.
if("90a" IN_LIST CMAKE_CUDA_ARCHITECTURES)
  add_library(weft_hopper_kernels OBJECT
    src/kernels/cuda/attention_hopper.cu
    src/kernels/cuda/attention_hopper_backward.cu)
  set_target_properties(weft_hopper_kernels PROPERTIES CUDA_ARCHITECTURES 90a)
  list(APPEND WEFT_CUDA_TARGETS weft_hopper_kernels)
  target_sources(weft_src PRIVATE src/kernels/cuda/engine_map.cpp)
else()
  target_sources(weft_src PRIVATE src/kernels/cuda/no_hopper.cpp)
endif()

foreach(target ${WEFT_CUDA_TARGETS})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(${target} PRIVATE -O3 --expt-relaxed-constexpr -lineinfo)
  target_sources(weft_src PRIVATE $<TARGET_OBJECTS:${target}>)
endforeach()

target_sources(weft_src PRIVATE
  src/core/cuda/memory.cpp
  src/core/cuda/range.cpp
  src/core/cuda/stream.cpp
  src/core/cuda/timer.cpp
  src/kernels/cuda/attention_ways.cpp
  src/kernels/cuda/matmul.cpp)
target_link_libraries(weft_src PUBLIC CUDA::cudart_static PRIVATE CUDA::cublasLt)

# Softmax attention in bf16: cuDNN, through the headers of its front end (tools/install_dependencies.sh
# fetches them into the default folder).
set(WEFT_CUDNN_FRONTEND_DIR ${CMAKE_SOURCE_DIR}/build/cudnn-frontend-1.18.0/include CACHE PATH
  "Folder of cudnn_frontend.h")
find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
if(CUDNN_INCLUDE_DIR AND CUDNN_LIBRARY AND EXISTS ${WEFT_CUDNN_FRONTEND_DIR}/cudnn_frontend.h)
  message(STATUS "cuDNN: ${CUDNN_LIBRARY}, front end: ${WEFT_CUDNN_FRONTEND_DIR}")
  target_sources(weft_src PRIVATE src/kernels/cuda/cudnn_attention.cpp)
  # Its warnings are not ours, and optimising it gains nothing: a plan is made once.
  set_source_files_properties(src/kernels/cuda/cudnn_attention.cpp PROPERTIES COMPILE_OPTIONS -O1)
  target_include_directories(weft_src SYSTEM PRIVATE ${WEFT_CUDNN_FRONTEND_DIR} ${CUDNN_INCLUDE_DIR})
  target_link_libraries(weft_src PRIVATE ${CUDNN_LIBRARY})
else()
  message(STATUS "cuDNN: none (cudnn.h: ${CUDNN_INCLUDE_DIR}, library: ${CUDNN_LIBRARY}, "
    "front end: ${WEFT_CUDNN_FRONTEND_DIR})")
  target_sources(weft_src PRIVATE src/kernels/cuda/no_cudnn.cpp)
endif()
