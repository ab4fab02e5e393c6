"""The data types of every kernel family: devices, limits, requests, programs, costs, candidates."""
