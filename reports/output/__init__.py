"""The whole report, and every form it takes: markdown, one page, JSON, files for other programs.

Door: `files.gather`, `produce` and `write`; `export`, `compare`, `seeds`. Never computes a statistic.
What takes a study's name raises what `choose_study` does: ConfigError for a name that is not there,
NoSuchStudy for a database without studies.
"""
