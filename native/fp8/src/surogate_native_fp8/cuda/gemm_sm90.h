// D (M, N) bfloat16 = alpha · A (M, K) · B (N, K)^T for FP8 operands on Hopper's matrix units (sm_90a): CUTLASS, TMA, two consumer warp
// groups, float32 sums. alpha is the product of the two inverse scales, each a float32 on the device.
//
// A and B have K contiguous, K and N divisible by 16. A source defines ELEMENT_A, SCHEDULE, EPILOGUE and the NAME of its functions,
// one instantiation a source: each takes nvcc half a minute and 3 GB. It has not been run on a GPU; the recipes multiply through cuBLASLt.
#pragma once
#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"

using namespace cute;

namespace {
using ElementA = ELEMENT_A;
using ElementB = cutlass::float_e4m3_t;
using Out = cutlass::bfloat16_t;
using Arch = cutlass::arch::Sm90;
using Class = cutlass::arch::OpClassTensorOp;
using Tile = Shape<_128, _128, _128>;
using Cluster = Shape<_2, _1, _1>;
constexpr int ALIGNMENT = 16, ALIGNMENT_OUT = 8;

using Epilogue = cutlass::epilogue::collective::CollectiveBuilder<
    Arch, Class, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, cutlass::layout::RowMajor,
    ALIGNMENT_OUT, Out, cutlass::layout::RowMajor, ALIGNMENT_OUT, EPILOGUE>::CollectiveOp;
using Mainloop = cutlass::gemm::collective::CollectiveBuilder<
    Arch, Class, ElementA, cutlass::layout::RowMajor, ALIGNMENT, ElementB, cutlass::layout::ColumnMajor, ALIGNMENT, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>, SCHEDULE>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue, void>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

typename Gemm::Arguments arguments(const void* a, const void* b, const float* alpha, void* d, int m, int n, int k) {
    typename Gemm::Arguments given{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, k, 1},
        {static_cast<const ElementA*>(a), cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, {m, k, 1}),
         static_cast<const ElementB*>(b), cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, {n, k, 1})},
        {{}, nullptr, {}, static_cast<Out*>(d), cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, {m, n, 1})}};
    given.epilogue.thread.alpha_ptr = alpha;
    return given;
}
}  // namespace

#define JOIN(a, b) a##b
#define NAMED(name, end) JOIN(name, end)

extern "C" int64_t NAMED(NAME, _workspace)(int m, int n, int k) {
    return Gemm::get_workspace_size(arguments(nullptr, nullptr, nullptr, nullptr, m, n, k));
}

// 0, or the CUTLASS status.
extern "C" int NAMED(NAME, _run)(
    const void* a, const void* b, const float* alpha, void* d, int m, int n, int k, void* workspace, void* stream
) {
    Gemm gemm;
    const auto given = arguments(a, b, alpha, d, m, n, k);
    auto status = gemm.can_implement(given);
    if (status == cutlass::Status::kSuccess) status = gemm.initialize(given, workspace, static_cast<cudaStream_t>(stream));
    if (status == cutlass::Status::kSuccess) status = gemm.run(static_cast<cudaStream_t>(stream));
    return static_cast<int>(status);
}
