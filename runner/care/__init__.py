"""Keeping machine, files and cluster fit for a night.

Door: `doctor.examine`, `clean.removable` and `remove`, `slurm.submit`. Never touches a job that runs, or a
result.
"""
