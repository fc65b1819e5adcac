"""The database, and every move of a job.

Door: `store.open_store` and `Store`, `jobs` (submit, claim, finish, …), `records` (what a running attempt
writes), `selection.find_job`. Never starts a process, reads a grid file or prints.
"""
