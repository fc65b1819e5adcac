"""Triton kernels, one operation a file, its way forward and back: what surrounds the large products on a GPU.

Door: model/engines/triton.py, the engine, and model/engines/self_check.py, which holds each to the plain
formulas. Every sum has one order and nothing is added atomically: the same bits each time.
TRITON_INTERPRET=1, set before Python starts, runs them on a CPU without compiling; tests do.
"""
