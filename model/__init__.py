"""What learns: a small Mixture-of-Experts language model, its text and its training.

Never imports runner/ or reports/. config < engines, text < network < training: a wing imports only what
stands left of it.
"""
