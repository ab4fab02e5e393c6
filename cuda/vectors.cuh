// vectors.cuh - where the tensor-core kernels read a tile's vectors: rows and columns of the grid, extra keys.
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

// `count` extra keys or values from `first` on, contiguous `[B, E, Hk, channels]`.
template <class Tile>
NB_DEVICE void load_extra(const Tile& tile, const Params& p, const void* tensor, int channels, int first, int count,
                          int sample, int head) {
  const Element* const base = static_cast<const Element*>(tensor) + extra_offset(p, sample, first, head, channels);
  const long long next = static_cast<long long>(p.heads / p.group) * channels;
  tile.load([&](int i) -> const Element* { return i < count ? base + i * next : nullptr; }, base, 1);
}

// Keys and values of a visit.
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

template <bool kValue>
struct Constant {
  static constexpr bool value = kValue;
};

// Calls use(masked, read), where read(row)(column) says whether a query of the tile reads a column of the visit,
// and `masked` is false where they all do.
template <class Use>
NB_DEVICE void read_by_queries(const Walk<QueryTile>& walk, const Visit& v, const Use& use) {
  if (v.full) {
    use(Constant<false>(), [](int) { return [](int) { return true; }; });
  } else if (v.extra) {
    use(Constant<true>(), [&](int) { return [&](int column) { return column < v.count[2]; }; });
  } else {
    use(Constant<true>(), [&](int row) {
      const RowMask<QueryTile, KeyTile> mask(walk, v, row);
      return [&walk, &v, mask](int column) { return mask.reads(column) && in_key_range<KeyTile>(walk, v, column); };
    });
  }
}

// The same for keys of the tile and queries of the visit.
template <class Use>
NB_DEVICE void read_by_keys(const Walk<KeyTile>& walk, const Visit& v, const Use& use) {
  if (v.full) {
    use(Constant<false>(), [](int) { return [](int) { return true; }; });
  } else {
    use(Constant<true>(), [&](int row) {
      const RowMask<KeyTile, QueryTile> mask(walk, v, row);
      return [mask](int column) { return mask.reads(column); };
    });
  }
}
}  // namespace nb
