"""A real Kubernetes cluster on this host, from binaries that Go builds: for tests, on machines that can pull nothing."""
