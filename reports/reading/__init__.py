"""From the database to DataFrames.

Door: `frames.load`, `series`, `study.Study`, `measures`. Never computes a statistic.
"""
