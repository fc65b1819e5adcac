"""The night: one supervisor, and a trainer process in each of its slots.

Door: `worker.Worker`, `options.Options`, `provenance.of_this_machine`. Never writes a job's state but through
runner/queue/jobs.py. Torch is imported in the other process alone: trainer.py, causes.py.
"""
