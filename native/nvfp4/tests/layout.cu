// Where CUTLASS wants the scale of (row, block) of a matrix with ``rows`` rows and ``columns`` columns, asked on the host.
#include "cute/tensor.hpp"
#include "cutlass/detail/sm100_blockscaled_layout.hpp"

extern "C" long long scale_offset(int rows, int columns, int row, int block) {
    const auto layout = cutlass::detail::Sm1xxBlockScaledConfig<16>::tile_atom_to_shape_SFA(cute::make_shape(rows, 128, columns, 1));
    return layout(row, block * 16, 0);
}
