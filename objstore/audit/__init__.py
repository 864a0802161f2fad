"""Administrative acts: who did what, when, from where; written with the act itself, in a chain."""
