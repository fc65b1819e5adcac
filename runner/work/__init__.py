"""The night: one supervisor, and a trainer process in each of its slots.

Door: `worker.Worker`, `options.Options`, `provenance.of_this_machine`. Never imports torch, but in
trainer.py, which is the other process; never writes a job's state but through runner/queue/jobs.py.
"""
