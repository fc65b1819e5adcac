"""Looking at the queue: one screen a question.

Door: `status`, `details.job_details`, `job.job_screen`, `watch.watch`, `digest`, `logs`. Changes nothing:
`status`, `details` and `snapshot` read in a query-only transaction, `console`, `job` and `frame` show it.
"""
