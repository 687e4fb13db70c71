"""How peers hear one another: one protocol, several backends."""
