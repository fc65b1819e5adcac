"""The report's figures: what each shows, from which rows.

Door: `comparison`, `load`, `dose`; how they look is `style`. Each takes DataFrames and returns a matplotlib
figure.
"""
