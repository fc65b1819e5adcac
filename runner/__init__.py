"""Who runs, and when: the queue and everything around it.

Never imports reports/, and of model/ only what needs no torch. queue < design < work < view < care: a wing
imports only what stands left of it.
"""
