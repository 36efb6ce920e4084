"""Targets, sampling and losses as free-standing pieces, and the trainer that uses them."""
