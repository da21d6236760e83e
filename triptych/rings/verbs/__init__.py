"""Rings over RDMA: one-sided reads, writes and atomics on the controller's memory, at no cost of its CPU."""
