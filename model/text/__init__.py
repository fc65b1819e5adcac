"""From files to batches: documents, split, tokens, windows.

Door: `corpus.resolve`, `dataset.prepare`, `dataset.Dataset`. Never trains, and reaches the network in hub.py
alone.
"""
