"""What every process of the project needs: logs, metric definitions, settings, the termination message, parent death.

The worker, the gateway and the operator share these modules, so that each subject has one implementation. The package
imports no other package of the project and neither torch nor Kubernetes.
"""
