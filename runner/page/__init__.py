"""The night from afar: static pages for a telephone, and the digest while the night goes on. Reads only.

Door: `keep_pages` (pages.py), `keep_telling` (notices.py), `Beside` (beside.py).
"""
