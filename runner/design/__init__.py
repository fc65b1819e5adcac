"""From a grid file to jobs: what shall run.

Door: `grid_file.load_grid`, `scales.adjust`, `enqueue.enqueue`, `importing.import_results`,
`catalogue.shipped`.
Never runs anything, and writes only through the queue.
"""
