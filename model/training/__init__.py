"""From a configuration to a result: the loop, its state, its checkpoints.

Door: `loop.train`, an iterator of events. Knows a work folder, never a job, a database or a heartbeat.
"""
