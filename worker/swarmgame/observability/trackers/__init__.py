"""The built-in experiment trackers; each imports its library when it is opened."""
