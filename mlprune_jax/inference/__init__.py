"""Finished models made fast: simplified, packed, dispatched by measured cost, compiled, and asked."""
