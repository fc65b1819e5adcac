"""The whole report, and every form it takes: markdown, one page, JSON, files for other programs.

Door: `files.gather`, `produce` and `write`; `export`, `compare`, `seeds`. Never computes a statistic.
"""
