"""The chain beside the loop: it hears what was played, and never holds it up. A game without a chain imports nothing from here but `place`."""
