"""One round of the federation: what server and clients agree on, send and make of it."""
