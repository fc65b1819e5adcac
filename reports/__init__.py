"""What was found: from rows to tables, figures and one page. Reads the database, never model/.

reading < statistics < tables < sections < figures < output: a wing imports only what stands left of it.
"""
