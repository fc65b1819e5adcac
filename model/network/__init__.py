"""The model as the papers write it: router, experts, attention.

Door: `transformer.build`, `moe.MoE`. Never reads a file and never steps an optimizer.
"""
