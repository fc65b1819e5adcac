"""Training programs of the user's own: the contract, the examples, and what a night does with them."""
