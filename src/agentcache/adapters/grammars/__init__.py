"""Grammars that answers are kept to, by llguidance."""
