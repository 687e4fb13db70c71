"""The SwarmGame manifest as pydantic models: the single source of the CRD, of the local runner and of the operator."""
