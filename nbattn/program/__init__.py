"""The data types of every kernel family: devices, limits, requests, programs, costs, candidates.

Parts of an axis: a `Piece` (dense_pieces) is a view of queries and one of keys that one kernel call
can compute. A `Strip` (band_pieces) is a piece before views: runs of queries and keys of a residue
class, with a band. A `Slice` (bands) is a run of a band's rows and the keys that it needs.
"""
