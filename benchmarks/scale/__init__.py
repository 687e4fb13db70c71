"""The cluster of operator_scale.py: a real API server with nodes and pods of kwok."""
