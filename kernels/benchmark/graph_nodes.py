"""What a captured CUDA graph launches, read from the graph through the driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod

KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL


class _KernelNodeParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2 of cuda.h."""

    _fields_ = (
        ("func", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("kernel_params", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kern", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class GraphNodes:
    """`nodes` counts kernels, memsets and copies; `programs` the blocks that the kernels launch."""

    nodes: int
    programs: int


def graph_nodes(graph: int) -> GraphNodes | None:
    """`graph`: a cudaGraph_t. None where the driver does not answer: the figures are extra."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        get_nodes, get_type = driver.cuGraphGetNodes, driver.cuGraphNodeGetType
        get_params = driver.cuGraphKernelNodeGetParams_v2
    except (OSError, AttributeError):
        return None
    count = ctypes.c_size_t()
    if get_nodes(ctypes.c_void_p(graph), None, ctypes.byref(count)):
        return None
    nodes = (ctypes.c_void_p * count.value)()
    if get_nodes(ctypes.c_void_p(graph), nodes, ctypes.byref(count)):
        return None
    programs = 0
    for node in map(ctypes.c_void_p, nodes):
        kind, params = ctypes.c_int(), _KernelNodeParams()
        if get_type(node, ctypes.byref(kind)):
            return None
        if kind.value == KERNEL_NODE:
            if get_params(node, ctypes.byref(params)):
                return None
            programs += prod(params.grid)
    return GraphNodes(count.value, programs)
