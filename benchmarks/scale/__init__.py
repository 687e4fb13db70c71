"""What operator_scale.py runs against: a real API server whose nodes and pods are kwok's."""
