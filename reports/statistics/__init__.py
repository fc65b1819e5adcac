"""Numbers from numbers: intervals, tests, corrections.

Door: `contrasts`, `judgement`, `anova`, `dose`, `power`, `load`; under them `inference`, `blocks` and
`families`. Pure functions; never prints, reads or draws.
"""
