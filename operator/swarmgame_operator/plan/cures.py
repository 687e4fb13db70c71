"""Cures: what to do about a refusal, found by words of the API server's answer. Pure.

Every answer is quoted as it is; a cure is a help, and an answer that this table does not know has a general one.
"""

from __future__ import annotations

import re

ANY = "Mend what this names; the operator tries again by itself."
_CURES: tuple[tuple[str, str], ...] = (
    (
        r"failed quota: .*must specify",
        "The namespace's ResourceQuota asks for these fields: set them in spec.podDefaults.resources, or add a "
        "LimitRange with defaults.",
    ),
    (r"exceeded quota", "Raise the namespace's ResourceQuota, or let the game request less."),
    (
        r"usage per (Container|Pod)|per Container is|limit to request ratio",
        "Set spec.podDefaults.resources within the namespace's LimitRange, or change that.",
    ),
    (
        r"violates PodSecurity",
        "Change spec.peers.podTemplate, or the namespace's label pod-security.kubernetes.io/enforce.",
    ),
    (
        r"security context constraint",
        "Set spec.podDefaults.arbitraryUser, or allow the pods' user in a SecurityContextConstraints of their service "
        "account.",
    ),
    (
        r"failed calling webhook|failed to call webhook",
        "The webhook does not answer: whoever installed it has to repair it.",
    ),
    (
        r"admission webhook .* denied|ValidatingAdmissionPolicy|admission policy",
        "A policy of this cluster refuses it: add what the policy asks for (spec.podDefaults), or have the game "
        "exempted.",
    ),
    (
        r"cannot (create|patch|get|list|delete|update) resource",
        "The operator lacks a right in this namespace: bind its role here (the chart's rbac and watchNamespaces).",
    ),
    (
        r"must support resize|can be resized|does not support resiz|resize is not supported",
        "The storage class does not enlarge claims (allowVolumeExpansion): give the old size, or a new claim.",
    ),
    (
        r"immutable after creation except",
        "A claim keeps its class and modes, and its size until it is bound: undo the change, or use a new claim.",
    ),
    (r"can ?not be less than|less than previous value", "A claim never shrinks: give at least its present size."),
    (
        r"[Uu]nable to retrieve some image pull secrets",
        "Create the pull Secret in the game's namespace, or correct spec.podDefaults.imagePullSecrets.",
    ),
    (r"priority class|PriorityClass|priorityClassName", "Create the PriorityClass, or correct priorityClassName."),
    (r"serviceaccount .* not found", "Create the service account in the game's namespace."),
    (r"storageclass|no persistent volumes available", "Correct the storage class, or provide a volume."),
    (r"is immutable|Duplicate value", "Delete the object, if it keeps no data: the operator makes it anew."),
    (r"(secret|configmap) .*not found", "Create it in the game's namespace."),
    (r"is being terminated", "The namespace is being deleted."),
)


def cure(answer: str) -> str:
    """Return what to do about an answer of the API server, as one sentence."""
    return next((text for pattern, text in _CURES if re.search(pattern, answer, re.IGNORECASE)), ANY)
