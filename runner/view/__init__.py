"""Looking at the queue: one screen a question.

Door: `status`, `job`, `watch`, `digest`, `logs`. Changes nothing: each reads in a query-only transaction.
"""
