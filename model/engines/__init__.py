"""How an operation is computed on a device: the same formulas, several implementations.

Door: `choice.operations` (which module computes) and `choice.settle`; the reference is `plain`. Never
decides what is computed.
"""
