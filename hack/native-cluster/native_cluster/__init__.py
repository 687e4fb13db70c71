"""A Kubernetes cluster on this host from binaries built by Go, for tests where no image registry can be reached."""
