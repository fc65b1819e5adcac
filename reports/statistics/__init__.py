"""Numbers from numbers: intervals, tests, corrections.

Door: `inference`, `blocks`, `families`, `expert_load`. Pure functions; never prints, reads or draws.
"""
