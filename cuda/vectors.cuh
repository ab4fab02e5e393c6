// vectors.cuh - loads a tile's vectors for the tensor-core kernels (rows, columns, extra keys) and masks its scores.
#pragma once
#include "mma.cuh"

namespace nb {
template <int kGiven, bool kKeys = false, class Tile, class Rows>
NB_DEVICE void load_rows(const Tile& tile, const Walk<Rows>& walk, const void* tensor, const Strides& s, int sample,
                         int head) {
  const Element* const base = static_cast<const Element*>(tensor) + sample * s.batch + head * s.head;
  const auto source = [&](int i) -> const Element* {
    const Place place = kKeys ? key_row_place(walk, i) : row_place(walk, i);
    return place.inside ? base + place.offset(s) : nullptr;
  };
  tile.template load<kGiven>(source, base, s.channel);
}

template <class Columns, bool kKeys = false, class Tile, class Rows>
NB_DEVICE void load_columns(const Tile& tile, const Walk<Rows>& walk, const Visit& v, const void* tensor,
                            const Strides& s, int sample, int head) {
  const Element* const base = static_cast<const Element*>(tensor) + sample * s.batch + head * s.head;
  const auto source = [&](int i) -> const Element* {
    const Place place = kKeys ? key_column_place<Columns>(walk, v, i) : column_place<Columns>(walk, v, i);
    return place.inside ? base + place.offset(s) : nullptr;
  };
  tile.load(source, base, s.channel);
}

// Loads `count` extra keys or values from `first` on, from a contiguous tensor `[B, E, Hk, channels]`.
template <class Tile>
NB_DEVICE void load_extra(const Tile& tile, const Params& p, const void* tensor, int channels, int first, int count,
                          int sample, int head) {
  const Element* const base = static_cast<const Element*>(tensor) + extra_offset(p, sample, first, head, channels);
  const long long next = static_cast<long long>(p.heads / p.group) * channels;
  tile.load([&](int i) -> const Element* { return i < count ? base + i * next : nullptr; }, base, 1);
}

// Loads the keys and values of a visit.
template <class KeyVectors, class ValueVectors, class Rows>
NB_DEVICE void load_keys(const KeyVectors& key, const ValueVectors& value, const Walk<Rows>& walk, const Visit& v,
                         const Params& p, int sample, int head) {
  if (v.extra) {
    load_extra(key, p, p.extra_key, kHeadDim, v.start[2], v.count[2], sample, head);
    load_extra(value, p, p.extra_value, kValueDim, v.start[2], v.count[2], sample, head);
  } else {
    load_columns<KeyTile, true>(key, walk, v, p.key, p.key_stride, sample, head);
    load_columns<KeyTile, true>(value, walk, v, p.value, p.value_stride, sample, head);
  }
}

// Sets every score for which read(row)(column, bit) is false to `hidden`; bit numbers this thread's columns.
template <int kColumns, class Read>
NB_DEVICE void hide(Fragment<kColumns>& s, float hidden, const Read& read) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto row = read(row_of(b, h));
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (!row(column_of(n, j), 2 * n + j)) s.at[b][n][2 * h + j] = hidden;
    }
}

// Which of this thread's columns are inside key_range, one bit each: the same for every row.
NB_DEVICE uint32_t columns_in_key_range(const Walk<QueryTile>& walk, const Visit& v) {
#if NB_KEY_RANGE && NB_TWO_RUNS
  static_assert(KeyTile::size <= 128, "32 columns of a thread");
  uint32_t bits = 0;
#pragma unroll 1
  for (int i = 0; i < KeyTile::size / 4; ++i)
    bits |= static_cast<uint32_t>(in_key_range<KeyTile>(walk, v, column_of(i / 2, i % 2))) << i;
  return bits;
#else
  return ~0u;
#endif
}

// Masks the scores of a visit's keys to which the tile's queries do not attend.
NB_DEVICE void hide_from_queries(Fragment<KeyTile::size>& s, float hidden, const Walk<QueryTile>& walk,
                                 const Visit& v) {
  if (v.full) return;
  if (v.extra) {
    hide(s, hidden, [&](int) { return [&](int column, int) { return column < v.count[2]; }; });
    return;
  }
  const uint32_t inside = columns_in_key_range(walk, v);
  hide(s, hidden, [&](int row) {
    const RowMask<QueryTile, KeyTile> mask(walk, v, row);
    return [mask, inside](int column, int bit) { return inside >> bit & 1 && mask.reads(column); };
  });
}

// Masks the scores of a visit's queries that do not attend to the tile's keys.
NB_DEVICE void hide_from_keys(Fragment<QueryTile::size>& s, float hidden, const Walk<KeyTile>& walk, const Visit& v) {
  if (v.full) return;
  hide(s, hidden, [&](int row) {
    const RowMask<KeyTile, QueryTile> mask(walk, v, row);
    return [mask](int column, int) { return mask.reads(column); };
  });
}
}  // namespace nb
