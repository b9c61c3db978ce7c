// D (M, N) bfloat16 = alpha · A (M, K) · B (N, K)^T for NVFP4 operands on Blackwell's matrix units: CUTLASS, kind mxf4nvf4 with block
// scales, float32 sums. alpha (one float32 on the device) is the product of the two decode scales.
//
// A and B are packed E2M1, rows of K / 2 bytes, K divisible by 32; N is divisible by 8; scales are swizzled (formats.py, swizzle).
// A source defines ARCHITECTURE, TILE and CLUSTER, one instantiation a source. Compiled by nvcc, not by NVRTC. It has not been run: no
// machine of the project has these architectures.
#pragma once
#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/detail/sm100_blockscaled_layout.hpp"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"

using namespace cute;

namespace {
using Element = cutlass::nv_float4_t<cutlass::float_e2m1_t>;
using Out = cutlass::bfloat16_t;
using Arch = cutlass::arch::ARCHITECTURE;
using Class = cutlass::arch::OpClassBlockScaledTensorOp;
using Tile = TILE;
using Cluster = CLUSTER;
constexpr int ALIGNMENT = 32, ALIGNMENT_OUT = 8;

using Epilogue = cutlass::epilogue::collective::CollectiveBuilder<
    Arch, Class, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, cutlass::layout::RowMajor,
    ALIGNMENT_OUT, Out, cutlass::layout::RowMajor, ALIGNMENT_OUT, cutlass::epilogue::collective::EpilogueScheduleAuto>::CollectiveOp;
using Mainloop = cutlass::gemm::collective::CollectiveBuilder<
    Arch, Class, Element, cutlass::layout::RowMajor, ALIGNMENT, Element, cutlass::layout::ColumnMajor, ALIGNMENT, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
    cutlass::gemm::collective::KernelScheduleAuto>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue, void>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
using Scales = typename Mainloop::Sm1xxBlkScaledConfig;

typename Gemm::Arguments arguments(
    const void* a, const void* b, const void* scales_a, const void* scales_b, const float* alpha, void* d, int m, int n, int k
) {
    const auto shape = make_shape(m, n, k, 1);
    const auto d_stride = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, {m, n, 1});
    typename Gemm::Arguments given{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, k, 1},
        {static_cast<const typename Element::DataType*>(a), cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, {m, k, 1}),
         static_cast<const typename Element::DataType*>(b), cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, {n, k, 1}),
         static_cast<const typename Element::ScaleFactorType*>(scales_a), Scales::tile_atom_to_shape_SFA(shape),
         static_cast<const typename Element::ScaleFactorType*>(scales_b), Scales::tile_atom_to_shape_SFB(shape)},
        {{}, nullptr, {}, static_cast<Out*>(d), d_stride}};
    given.epilogue.thread.alpha_ptr = alpha;
    return given;
}
}  // namespace

extern "C" int64_t nvfp4_gemm_workspace(int m, int n, int k) {
    return Gemm::get_workspace_size(arguments(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, m, n, k));
}

// 0, or the CUTLASS status.
extern "C" int nvfp4_gemm_bf16(
    const void* a, const void* b, const void* scales_a, const void* scales_b, const float* alpha, void* d, int m, int n, int k,
    void* workspace, void* stream
) {
    Gemm gemm;
    const auto given = arguments(a, b, scales_a, scales_b, alpha, d, m, n, k);
    auto status = gemm.can_implement(given);
    if (status == cutlass::Status::kSuccess) status = gemm.initialize(given, workspace, static_cast<cudaStream_t>(stream));
    if (status == cutlass::Status::kSuccess) status = gemm.run(static_cast<cudaStream_t>(stream));
    return static_cast<int>(status);
}
