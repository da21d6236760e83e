"""Rings over RDMA: one-sided reads, writes and atomics on the controller's memory, at no cost of its CPU.

| file | subject |
| --- | --- |
| `card` | the interface to a binding, and the constants of a connection |
| `pyverbs_card`, `ibverbs_card` | the two bindings behind it |
| `driver` | runs programs over a connected queue pair |
| `host` | the controller's side: the memory, one queue pair for each rank, a loopback pair for itself |
| `connector`, `ring` | a worker's side: the connection, and the `Ring` over it |
"""
