"""A package, because pytest would otherwise import these tests below a module `operator`, and put it in the standard
library's place.
"""
