"""Renting capacity: who rents, how much they may store, what they stored, and what it costs."""
