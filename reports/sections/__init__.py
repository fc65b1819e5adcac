"""The report, one section a file: a table and the sentences around it.

Door: the functions that output/report.py lists in its order. Never queries the database, never writes a file.
"""
