// metal_tensor: matrices in memory, as far as mpp::tensor_ops reads and writes them. The first index is the column.
#pragma once
#include "all.h"

namespace metal {

static constant constexpr size_t dynamic_extent = ~0ul;

// An index of a dimension has type I; where SIZES says dynamic_extent the run tells the length.
template <typename I, size_t... SIZES> struct extents {
  typedef I index_type;
  static constant constexpr size_t msl_rank = sizeof...(SIZES);
  I msl_lengths[sizeof...(SIZES)];
  extents() = default;
  template <typename... L, typename = enable_if_t<sizeof...(L) == sizeof...(SIZES)>>
  MSL_INLINE constexpr extents(L... lengths) : msl_lengths{(I)lengths...} {}
  MSL_INLINE constexpr I extent(size_t dimension) const { return msl_lengths[dimension]; }
  static MSL_INLINE constexpr size_t rank() { return msl_rank; }
};
template <size_t> static constant constexpr size_t msl_dynamic = dynamic_extent;
template <typename I, typename DIMENSIONS> struct msl_dextents;
template <typename I> struct msl_dextents<I, integral_constant<size_t, 1>> { typedef extents<I, dynamic_extent> type; };
template <typename I> struct msl_dextents<I, integral_constant<size_t, 2>> {
  typedef extents<I, dynamic_extent, dynamic_extent> type;
};
template <typename I, size_t RANK> using dextents = typename msl_dextents<I, integral_constant<size_t, RANK>>::type;

// A tensor that the kernel makes of a pointer.
struct tensor_inline {};

// T carries its address space. Only matrices: what the products take.
template <typename T, typename EXTENTS, typename TAG = tensor_inline> struct tensor {
  static_assert(EXTENTS::msl_rank == 2, "the simulator has tensors of two dimensions");
  typedef remove_addrspace_t<remove_cv_t<T>> element_type;
  typedef typename EXTENTS::index_type index_type;
  T* msl_data;
  EXTENTS msl_extents;
  long msl_strides[2];

  MSL_INLINE tensor(T* data, EXTENTS sizes) : msl_data(data), msl_extents(sizes), msl_strides{1, (long)sizes.extent(0)} {}
  template <typename S>
  MSL_INLINE tensor(T* data, EXTENTS sizes, array<S, 2> strides)
      : msl_data(data), msl_extents(sizes), msl_strides{(long)strides[0], (long)strides[1]} {}
  template <typename S>
  MSL_INLINE tensor(T* data, EXTENTS sizes, S column, S row)
      : msl_data(data), msl_extents(sizes), msl_strides{(long)column, (long)row} {}

  MSL_INLINE index_type get_extent(size_t dimension) const { return msl_extents.extent(dimension); }
  MSL_INLINE T& msl_at(int column, int row) const { return msl_data[column * msl_strides[0] + row * msl_strides[1]]; }

  // A part with sizes known beforehand is read whole, one of dynamic size to the end of this tensor.
  template <size_t COLUMNS = dynamic_extent, size_t ROWS = dynamic_extent>
  MSL_INLINE auto slice(index_type column, index_type row) const {
    typedef extents<index_type, COLUMNS, ROWS> sizes;
    return tensor<T, sizes, TAG>(
        msl_data + (column * msl_strides[0] + row * msl_strides[1]),
        sizes(
            COLUMNS == dynamic_extent ? get_extent(0) - column : (index_type)COLUMNS,
            ROWS == dynamic_extent ? get_extent(1) - row : (index_type)ROWS),
        msl_strides[0], msl_strides[1]);
  }
};

}  // namespace metal
