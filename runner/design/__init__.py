"""From a grid file to jobs: what shall run.

Door: `grids.load_grid` and `adjust`, `enqueue.enqueue`, `importing.import_results`, `catalogue.shipped`.
Never runs anything, and writes only through the queue.
"""
