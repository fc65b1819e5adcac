"""Keeping machine, files, database and cluster fit for a night.

Door: `doctor.examine`, `clean.removable` and `remove`, `copying.copy_store`, `slurm.submit`. Never touches a
job that runs, or a result.
"""
